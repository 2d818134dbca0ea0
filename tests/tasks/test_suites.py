"""lm-eval's long-context suites with `mesa-hf`: the tasks' own code over small local data of the same schema."""

import importlib
from functools import cache, partial
from pathlib import Path
from statistics import fmean

import datasets
import lm_eval.tasks
import nltk
import pytest
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
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


class HalfRight(LM):
    """Answers every other question rightly, the others with what is in no answer."""

    def generate_until(self, requests, disable_tqdm=False):
        return [right_answer(request.doc) if request.doc_id % 2 == 0 else "QQQ" for request in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        chosen = [request.arguments[1].strip() == right_answer(request.doc) for request in requests]
        wanted = [request.doc_id % 2 == 0 for request in requests]
        return [(0.0 if pair[0] == pair[1] else -99.0, True) for pair in zip(chosen, wanted, strict=True)]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


def right_answer(doc):
    if "choices" in doc:
        return doc["choices"][doc["gold"]]
    if doc.get("is_yes_no"):
        return doc["outputs"][0].lower()
    if "max_length" in doc:
        return " ".join(doc["outputs"])  # RULER wants all of them
    if doc.get("options"):
        return "ABCD"[doc["options"].index(doc["answer"][0])]
    found = next(doc[name] for name in ("answers", "answer", "outputs", "target") if name in doc)
    return found if isinstance(found, str) else found[0]


def half_right(tasks, lengths=LENGTHS):
    """The scores of each task where every other answer is right."""
    report = simple_evaluate(HalfRight(), tasks=tasks, task_manager=task_manager(lengths), bootstrap_iters=0)
    shown = {task: report["results"][task].items() for task in tasks}
    return {
        task: {name: score for name, score in scores if isinstance(score, float) and score != -1}
        for task, scores in shown.items()
    }


def test_ruler_scores_each_length_by_its_own_answers(local_data):
    for task, scores in half_right(RULER).items():
        assert scores == {f"{LENGTHS[0]},none": 1, f"{LENGTHS[1]},none": 0}, task


def test_half_of_the_answers_right_is_half_of_the_score(local_data):
    for task, scores in (half_right([*LONGBENCH, *INFINITEBENCH]) | half_right(BABILONG, "2k")).items():
        assert {"score,none", "acc,none"} & scores.keys()
        assert scores == pytest.approx(dict.fromkeys(scores, 0.5)), task


def test_half_of_the_answers_right_is_half_of_scrolls_percent(local_data):
    choices, summaries = ["contractnli", "quality"], ["govreport", "qmsum", "summscreenfd"]
    for task, scores in half_right(SCROLLS).items():
        name = task.removeprefix("scrolls_")
        if name in choices:
            assert scores == {"em,none": 50, "acc,none": 0.5, "acc_norm,none": 0.5}, task
        else:
            measures = ["rouge1,none", "rouge2,none", "rougeL,none"] if name in summaries else ["f1,none"]
            assert scores == dict.fromkeys(measures, 50), task


def test_ruler_asks_at_every_length(run):
    report = run(RULER)
    for task in RULER:
        asked = {sample["doc"]["max_length"]: sample for sample in report["samples"][task]}
        assert sorted(asked) == list(LENGTHS)
        for length, sample in asked.items():
            assert sample["doc"]["outputs"]
            assert report["results"][task][f"{length},none"] == sample[str(length)]


def test_babilong_reads_the_length_asked_for(run):
    report = run(BABILONG, "2k")
    text = data.FILLER * 2
    for task in BABILONG:
        assert all(text in sample["arguments"][0][0] for sample in report["samples"][task])


@pytest.mark.parametrize("tasks", [LONGBENCH, INFINITEBENCH, SCROLLS], ids=["longbench", "infinitebench", "scrolls"])
def test_every_question_is_answered_and_counts(run, tasks):
    report = run(tasks)
    for task in tasks:
        samples = report["samples"][task]
        assert len(samples) == 2 and all(len(sample["resps"]) for sample in samples)
        if tasks is not SCROLLS:  # which scores all samples together
            assert report["results"][task]["score,none"] == fmean(sample["score"] for sample in samples)
