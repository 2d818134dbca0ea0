"""lm-eval's evaluation as mesa-lm extends it: the evaluated model's tokenizer, loaded models, early checks."""

import copy
import json
import logging
from pathlib import Path

import byte_model
import lm_eval.models.huggingface
import pytest
import transformers
from lm_eval.evaluator import evaluate, simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

from mesa_lm.errors import MesaError, ModelError, UsageError
from mesa_lm.harness.model import MesaHFLM

TASK = "passkey_long_1k"
MODEL = {"method": "rerope", "window": 23, "train_length": 97}
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return byte_model.save_model(tmp_path_factory.mktemp("models") / "bytes-model")


def loaded(folder: str) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    return (
        transformers.AutoModelForCausalLM.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    )


def sent(results: dict, task: str = TASK) -> tuple[int, int]:
    """The tokens that a sample says it has, and those that the prompt sent has: bytes."""
    (sample,) = results["samples"][task]
    return sample["doc"]["tokens"], len(sample["arguments"][0][0].encode())


def run(**options: object) -> dict:
    settings = {"tasks": [TASK], "limit": 1, "bootstrap_iters": 0, "gen_kwargs": {"max_gen_toks": 1}}
    return simple_evaluate(**{**settings, **options})


class OwnTaskManager(TaskManager):
    """As a user derives it."""


MANAGERS = {
    "lm-eval's": lambda: {},
    "the user's": lambda: {"task_manager": TaskManager(include_defaults=False)},
    "derived": lambda: {"task_manager": OwnTaskManager(include_defaults=False, metadata={"num_samples": 3})},
}
MODELS = {
    "mesa-hf object": lambda folder: {"model": MesaHFLM(pretrained=folder, **MODEL)},
    "mesa-hf by name": lambda folder: {"model": "mesa-hf", "model_args": {"pretrained": folder, **MODEL}},
    "mesa-hf by string": lambda folder: {"model": "mesa-hf", "model_args": f"pretrained={folder},method=origin"},
    "mesa-hf loaded": lambda folder: {
        "model": "mesa-hf",
        "model_args": dict(zip(("pretrained", "tokenizer"), loaded(folder), strict=True)) | MODEL,
    },
    "hf by name": lambda folder: {
        "model": "hf",
        "model_args": {"pretrained": folder, "max_length": 2000, "device": "cpu"},
    },
    "hf object": lambda folder: {
        "model": lm_eval.models.huggingface.HFLM(pretrained=folder, device="cpu", max_length=2000)
    },
}


@pytest.mark.parametrize("manager", MANAGERS)
@pytest.mark.parametrize("model", MODELS)
def test_lengths_are_counted_by_the_evaluated_models_tokenizer(model: str, manager: str, folder: str) -> None:
    said, found = sent(run(**MODELS[model](folder), **MANAGERS[manager]()))
    assert said == found
    assert 1024 - 90 < found <= 1024


def test_two_evaluations_with_different_models_count_each_by_its_own(folder: str) -> None:
    manager = TaskManager(include_defaults=False)
    options = {"tasks": ["passkey_long_600"], "task_manager": manager}
    said, found = sent(run(model="mesa-hf", **options), "passkey_long_600")  # the demo model's tokens are not bytes
    assert said <= 600 < found
    lm = MesaHFLM(pretrained=folder, **MODEL)
    own, found_own = sent(run(model=lm, **options), "passkey_long_600")
    assert own == found_own <= 600
    assert sent(run(model="mesa-hf", **options), "passkey_long_600") == (said, found)


def test_a_model_that_says_nothing_of_its_tokenizer_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing says here which it is; name it"):
        run(model="dummy", tasks=["passkey_long_512"])


def test_tasks_built_before_a_model_is_known_are_refused_or_right(folder: str) -> None:
    with pytest.raises(UsageError, match="counted by the tokenizer of the evaluated model"):
        TaskManager(include_defaults=False).load([TASK])
    tasks = TaskManager(include_defaults=False, metadata={"pretrained": folder}).load([TASK])
    lm = MesaHFLM(pretrained=folder, **MODEL)
    assert sent(evaluate(lm, tasks, limit=1, bootstrap_iters=0))[0] > 900
    with pytest.raises(UsageError, match=r"counted as 9\d\d tokens, and the model is sent \d{3};"):
        evaluate(MesaHFLM(), tasks, limit=1)
    with pytest.raises(UsageError, match="and the model is sent"):
        simple_evaluate(MesaHFLM(), tasks=list(tasks["tasks"].values()), limit=1)


@pytest.mark.parametrize("task", ["long_ppl_512", "longeval_lines_1k", "passkey_grid_600"])
def test_a_tokenizer_of_another_model_is_refused(task: str, folder: str) -> None:
    manager = TaskManager(include_defaults=False, metadata={"tokenizer": folder})
    with pytest.raises(UsageError, match="and the model is sent"):
        run(model="mesa-hf", tasks=[task], task_manager=manager)


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("task", [TASK, "longeval_lines_1k"])
def test_what_a_chat_template_adds_is_counted(task: str, chat: bool, system: str | None, tmp_path: Path) -> None:
    folder = byte_model.save_model(tmp_path, chat_template=CHAT)
    options = {"apply_chat_template": chat, "system_instruction": system, "tasks": [task]}
    said, found = sent(run(model="mesa-hf", model_args={"pretrained": folder, **MODEL}, **options), task)
    assert said == found <= 1024


def test_a_chat_template_that_there_is_not_is_refused(folder: str) -> None:
    with pytest.raises(ModelError, match="has no chat template; leave it out"):
        run(
            model="mesa-hf",
            model_args={"pretrained": folder, **MODEL},
            apply_chat_template=True,
            evaluation_tracker=EvaluationTracker(),
        )


def test_a_loaded_model_is_evaluated_saved_and_detached(folder: str, tmp_path: Path) -> None:
    model, tokenizer = loaded(folder)
    forward = model.forward
    arguments = {"pretrained": model, "tokenizer": tokenizer, **MODEL}
    tracker = EvaluationTracker(output_path=str(tmp_path))
    results = run(model="mesa-hf", model_args=arguments, evaluation_tracker=tracker, log_samples=True)
    assert model.forward == forward
    assert arguments["pretrained"] is model
    assert results["config"]["model_args"] == {"pretrained": folder, "tokenizer": folder, **MODEL}
    named = run(model="mesa-hf", model_args={"pretrained": folder, **MODEL})
    assert [s["resps"] for s in results["samples"][TASK]] == [s["resps"] for s in named["samples"][TASK]]
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=copy.deepcopy(results), samples=samples)
    tracker.save_results_samples(task_name=TASK, samples=samples[TASK])
    (saved,), (logged,) = tmp_path.glob("*/results_*.json"), tmp_path.glob("*/samples_*.jsonl")
    assert "bytes-model" in saved.parent.name
    assert json.loads(saved.read_text())["config"]["mesa_lm"]["pretrained"] == folder
    assert json.loads(logged.read_text())["doc"]["length"] == 1024


def test_a_loaded_model_without_a_name_is_named_by_its_class(folder: str) -> None:
    model, tokenizer = loaded(folder)
    model.name_or_path = ""
    results = run(model="mesa-hf", model_args={"pretrained": model, "tokenizer": tokenizer, **MODEL})
    assert results["config"]["model_args"]["pretrained"] == "LlamaForCausalLM"


@pytest.mark.parametrize("fails", ["generating", "loading tasks"])
def test_a_loaded_model_is_detached_when_the_evaluation_fails(
    fails: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded(folder)
    forward = model.forward

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("as if")

    monkeypatch.setattr(MesaHFLM, "_model_generate", fail)
    options = {"tasks": ["passkey_long_10"]} if fails == "loading tasks" else {}
    with pytest.raises((RuntimeError, MesaError)):
        run(model="mesa-hf", model_args={"pretrained": model, "tokenizer": tokenizer, **MODEL}, **options)
    assert model.forward == forward


def test_a_model_that_the_user_made_stays_as_it_is_and_answers_no_more_once_closed(folder: str) -> None:
    lm = MesaHFLM(pretrained=folder, **MODEL)
    run(model=lm)
    assert lm.handle is not None and lm.handle.is_attached
    lm.close()
    lm.close()
    with pytest.raises(ModelError, match="'rerope' has been removed from the model"):
        run(model=lm)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_args": {"batch_size": 2}, "batch_size": 1}, "batch_size is given twice"),
        ({"model_args": "device=cpu", "device": "cpu"}, "device is given twice"),
        ({"metadata": {"method": "rerope"}}, "unknown option in metadata 'method'"),
        ({"metadata": {"num_sample": 3}}, "did you mean 'num_samples'"),
        ({"metadata": {"banana": 3}}, "unknown option in metadata 'banana'.*model_args has those of the model"),
        ({"num_fewshot": 3}, "num_fewshot must be 0 for passkey_long_1k"),
        ({"limit": 0}, "limit must be a whole number"),
        ({"limit": -2}, "limit must be"),
        ({"limit": 2.5}, "limit must be"),
        ({"limit": float("nan")}, "limit must be"),
        ({"limit": None, "samples": {TASK: [50]}}, f"samples of {TASK} must be a list of whole numbers from 0 to 49"),
        ({"limit": None, "samples": {"passkey_long_2k": [0]}}, "unknown task in samples 'passkey_long_2k'"),
        ({"limit": None, "samples": "there"}, "samples must name places by task"),
        ({"tasks": ["passkey_long_1K"]}, "unknown task 'passkey_long_1K'; did you mean 'passkey_long_1k'"),
    ],
)
def test_what_would_be_ignored_or_fail_late_is_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(model="mesa-hf", **options)


def test_options_of_other_tasks_are_theirs(folder: str) -> None:
    def documents(*, banana: int, **options: object) -> None:
        raise LookupError(f"reached with {banana}")

    tasks = [TASK, {"task": "own", "custom_dataset": documents, "test_split": "test"}]
    with pytest.raises(LookupError, match="reached with 3"):
        run(model="mesa-hf", model_args={"pretrained": folder, **MODEL}, tasks=tasks, metadata={"banana": 3})


@pytest.mark.parametrize("option", ["output_path", "use_cache"])
def test_a_place_where_nothing_can_be_saved_is_refused(option: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "x", Path("/proc/nope/x")):
        tracker = EvaluationTracker(output_path=str(place)) if option == "output_path" else None
        with pytest.raises(UsageError, match=f"{option}: nothing can be saved in"):
            run(model="mesa-hf", evaluation_tracker=tracker, **({} if tracker else {option: str(place / "y")}))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_place_where_something_can_be_saved_is_left_as_it_was(folder: str, tmp_path: Path) -> None:
    tracker = EvaluationTracker(output_path=str(tmp_path / "new" / "out"))
    run(model="mesa-hf", model_args={"pretrained": folder, **MODEL}, evaluation_tracker=tracker)
    assert list(tmp_path.iterdir()) == []


def test_git_does_not_complain_outside_of_a_repository(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert run(model="mesa-hf", model_args={"pretrained": folder, **MODEL})["git_hash"] is None
    assert "fatal" not in capfd.readouterr().err


def test_nothing_is_recommended_that_was_not_asked_for(caplog: pytest.LogCaptureFixture, folder: str) -> None:
    with caplog.at_level(logging.INFO):
        run(model="mesa-hf", model_args={"pretrained": folder, **MODEL})
    assert "Custom kwargs" not in caplog.text and "friendly reminder" not in caplog.text
