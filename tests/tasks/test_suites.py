"""lm-eval's long-context suites with `mesa-hf`: the tasks' own code over small local data of the same schema."""

import importlib
from functools import cache, partial
from pathlib import Path

import datasets
import lm_eval.tasks
import nltk
import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks._yaml_loader import _load_module_with_cache

from mesa_lm.demo import MODEL_PATH
from mesa_lm.harness.model import MesaHFLM
from mesa_lm.harness.task_manager import TaskManager
from mesa_lm.methods.registry import make_method
from tests import suites_data as data

TRAIN_LENGTH = 512
LENGTHS = (2048, 3072)
NEEDLES = ["niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3"]
RULER = [*NEEDLES, "niah_multivalue", "niah_multiquery", "ruler_vt", "ruler_cwe", "ruler_fwe"]
LONGBENCH = [f"longbench_{name}" for name in data.LONGBENCH]
INFINITEBENCH = [f"infinitebench_{name}" for name in data.INFINITEBENCH]
SCROLLS = ["contractnli", "govreport", "narrativeqa", "qasper", "qmsum", "quality", "summscreenfd"]
SCROLLS = [f"scrolls_{name}" for name in SCROLLS]
# In lm-eval's catalogue only these take their length from `max_seq_lengths`; the others ask for 0k.
BABILONG = [f"babilong_qa{i}" for i in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)]


@pytest.fixture(scope="module")
def local_data():
    """Nothing is downloaded, and RULER's tasks build one question per length instead of 500."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", data.load_dataset)
        patch.setattr(nltk.data, "find", lambda name: name)
        prepare = importlib.import_module("lm_eval.tasks.ruler.prepare_niah")
        prepare.get_haystack.cache_clear()
        patch.setattr(prepare, "sent_tokenize", data.sentences)
        for name, function in (
            ("niah_utils", "generate_samples"),
            ("vt_utils", "sys_vartrack_w_noise_random"),
            ("cwe_utils", "sys_word_pair_random"),
            ("fwe_utils", "sys_kwext"),
        ):
            module = task_module(f"ruler/{name}.py")
            patch.setattr(module, function, partial(one_question, getattr(module, function)))
        scrolls = task_module("scrolls/task.py")
        patch.setattr(scrolls, "load_dataset", data.load_dataset)
        patch.setattr(scrolls, "_download_metric", lambda: "scrolls.py")
        patch.setattr(scrolls, "load", lambda path, config_name: data.ScrollsMetric())
        yield
        prepare.get_haystack.cache_clear()


def task_module(path):
    """The module of lm-eval's catalogue that the YAML files beside it use; an ordinary import is another one."""
    return _load_module_with_cache(Path(lm_eval.tasks.__file__).parent / path)


def one_question(build, *values, **options):
    return build(*values, **{**options, "num_samples": 1})


@cache
def task_manager(lengths):
    """Indexing lm-eval's catalogue takes seconds."""
    return TaskManager(metadata={"pretrained": str(MODEL_PATH), "max_seq_lengths": lengths})


@pytest.fixture(scope="module")
def lm(local_data):
    return MesaHFLM(batch_size=2)


@pytest.fixture(params=["mesa", "origin"])
def run(request, lm, monkeypatch):
    """Evaluate tasks, and check that the model read every prompt whole and beyond its training length."""
    lm.switch(make_method(request.param))
    read = []
    forward = lm._model_generate

    def spy(context, attention_mask=None, **options):
        read.extend(attention_mask.sum(dim=1).tolist())
        return forward(context=context, attention_mask=attention_mask, **options)

    monkeypatch.setattr(lm, "_model_generate", spy)

    def evaluate(tasks, lengths=LENGTHS):
        manager = task_manager(lengths)
        answer = {"max_gen_toks": 3}  # tokens
        report = simple_evaluate(lm, tasks=tasks, task_manager=manager, gen_kwargs=answer, bootstrap_iters=0)
        prompts = {sample["arguments"][0][0] for samples in report["samples"].values() for sample in samples}
        assert min(len(lm.tok_encode(prompt)) for prompt in prompts) > TRAIN_LENGTH
        generated = [
            len(lm.tok_encode(sample["arguments"][0][0]))
            for samples in report["samples"].values()
            for sample in samples
            if isinstance(sample["arguments"][0][1], dict)
        ]
        assert sorted(read) == sorted(generated)
        assert lm.truncated_samples == 0
        return report

    return evaluate


def test_ruler_answers_at_every_length(run):
    report = run(RULER)
    for task in RULER:
        assert all(0 <= report["results"][task][f"{length},none"] <= 1 for length in LENGTHS)
        asked = {sample["doc"]["max_length"]: sample for sample in report["samples"][task]}
        for length, sample in asked.items():
            assert sample["doc"]["outputs"]
            assert report["results"][task][f"{length},none"] == sample[str(length)]
        assert sorted(asked) == list(LENGTHS)


def test_longbench_scores(run):
    results = run(LONGBENCH)["results"]
    measures = ["qa_f1_score", "qa_f1_score", "rouge_score", "retrieval_score", "code_sim_score"]
    for task, measure in zip(LONGBENCH, measures, strict=True):
        assert 0 <= results[task][f"{measure},none"] == results[task]["score,none"] <= 1


def test_babilong_reads_the_length_asked_for(run):
    report = run(BABILONG, "2k")
    text = data.FILLER * 2
    for task in BABILONG:
        assert 0 <= report["results"][task]["acc,none"] <= 1
        assert all(text in sample["arguments"][0][0] for sample in report["samples"][task])


def test_infinitebench_scores(run):
    results = run(INFINITEBENCH)["results"]
    assert all(0 <= results[task]["score,none"] <= 1 for task in INFINITEBENCH)


def test_scrolls_scores(run):
    results = run(SCROLLS)["results"]
    for task in SCROLLS:
        scores = {
            name: score for name, score in results[task].items() if name.endswith(",none") and "stderr" not in name
        }
        assert scores and all(0 <= score <= 100 for score in scores.values())
        assert ("em,none" in scores) == (task in ("scrolls_contractnli", "scrolls_quality"))
