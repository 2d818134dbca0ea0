"""What an evaluation by lm-eval does besides, where it has this project's model or tasks.

`extend_evaluator` wraps lm-eval's `simple_evaluate` and `evaluate`, so that

* tasks know the evaluated model and count lengths by its tokenizer, however model and task manager were given;
* a model that the user has loaded is named in the results, and free of its method when the evaluation ends;
* arguments that would be ignored, and results that could not be saved, are refused before a model is loaded.

An evaluation of other models on other tasks is lm-eval's own.
"""

import functools
import inspect
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

import lm_eval.api.registry
import torch
from lm_eval.loggers.utils import get_commit_from_path
from transformers import PreTrainedTokenizerBase

from mesa_lm.harness.evaluation_checks import check_evaluation, check_samples
from mesa_lm.harness.left_out_logs import left_out
from mesa_lm.harness.model_args import named
from mesa_lm.harness.plugin import MODEL_NAME
from mesa_lm.harness.task_manager import is_own_task
from mesa_lm.harness.tokenizing import encoding_of, evaluated_model, note_evaluated, rendering


def extend_evaluator(evaluator: ModuleType) -> None:
    """Extend lm-eval's module `evaluator`, in place."""
    names = vars(evaluator)
    names["simple_evaluate"] = _extended_simple_evaluate(evaluator.simple_evaluate)
    names["evaluate"] = _extended_evaluate(evaluator.evaluate)
    names["get_git_commit_hash"] = _quiet_commit(evaluator.get_git_commit_hash)
    registry = vars(lm_eval.api.registry)
    registry["get_model"] = _extended_get_model(registry["get_model"])


class Evaluation:
    """One call of `simple_evaluate`.

    Attributes:
        arguments: Its arguments by name.
        is_ours: Whether it has this project's model or tasks.
        lm: The model of lm-eval, once there is one.
        results: What it returned, once it has.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        """Look at the arguments, and put names in the place of models and tokenizers among them.

        lm-eval copies the model's arguments for every task, calls the folder of results by them and saves them.
        """
        self.arguments = arguments
        model, given = arguments["model"], arguments.get("model_args")
        tasks = arguments.get("tasks") or []
        self.is_ours = model == MODEL_NAME or any(map(is_own_task, [tasks] if isinstance(tasks, str) else tasks))
        self.lm = None if isinstance(model, str) else model
        self.results: Any = None
        self._objects: dict[str, Any] = {}
        if self.is_ours and isinstance(given, dict):
            self._objects = {name: value for name, value in given.items() if _is_loaded(value)}
            arguments["model_args"] = {**given, **{name: named(value) for name, value in self._objects.items()}}

    def check(self) -> None:
        """Refuse what is wrong before a model is loaded.

        Raises:
            MesaError: Something is.
        """
        if self.is_ours:
            check_evaluation(self.arguments)

    def create(self, kind: Any, arguments: Any, others: Any) -> Any:
        """Create the model, with the objects that the user gave."""
        if isinstance(arguments, dict):
            self.lm = kind.create_from_arg_obj({**arguments, **self._objects}, others)
        else:
            self.lm = kind.create_from_arg_string(arguments, others)
        self.note_encoding()
        return self.lm

    def note_encoding(self) -> None:
        """Let tasks count as the model will be sent their prompts."""
        chat = self._rendered_chat if self.arguments.get("apply_chat_template") else None
        rendered = rendering(self.arguments.get("system_instruction"), chat)
        note_evaluated(lambda: encoding_of(self.lm, rendered))

    def _rendered_chat(self, messages: list[dict[str, str]]) -> str:
        rendered: str = self.lm.apply_chat_template(messages)  # type: ignore[union-attr]
        return rendered

    def end(self) -> None:
        """Detach the method from a model of the user's; one of `mesa-hf` that the user made stays as it is."""
        if self._objects and self.lm is not None and hasattr(self.lm, "close"):
            self.lm.close()


_running: ContextVar[Evaluation | None] = ContextVar("the call of simple_evaluate that runs", default=None)
_latest: ContextVar[Evaluation | None] = ContextVar("the call of simple_evaluate that ended last", default=None)


def latest_evaluation() -> Evaluation | None:
    """Return the evaluation that ended last; None where there was none."""
    return _latest.get()


def _extended_simple_evaluate(stock: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def simple_evaluate(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        evaluation = Evaluation(call.arguments)
        evaluation.check()
        with _as_running(evaluation):
            evaluation.results = stock(*call.args, **call.kwargs)
        return evaluation.results

    return simple_evaluate


@contextmanager
def _as_running(evaluation: Evaluation) -> Iterator[None]:
    token = _running.set(evaluation)
    _latest.set(evaluation)
    try:
        # In a grid of depths each measure has the questions of its own depth, equally many.
        with (
            evaluated_model(None),
            left_out("lm_eval.evaluator_utils", "[passkey_grid_", "not scored on the same number"),
        ):
            if evaluation.lm is not None:
                evaluation.note_encoding()
            yield
    finally:
        _running.reset(token)
        evaluation.end()


def _extended_evaluate(stock: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(stock)

    @functools.wraps(stock)
    def evaluate(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        given = call.arguments
        check_samples(given["task_dict"], given.get("samples"))
        if _running.get() is not None:  # which knows the model, and how it is sent its prompts
            return stock(*call.args, **call.kwargs)
        # Tasks that were built before the model was known are held against it, see `mesa_lm.harness.sent_lengths`.
        with evaluated_model(lambda: encoding_of(given["lm"])):
            return stock(*call.args, **call.kwargs)

    return evaluate


def _extended_get_model(stock: Callable[[str], Any]) -> Callable[[str], Any]:
    @functools.wraps(stock)
    def get_model(model_name: str) -> Any:
        kind, evaluation = stock(model_name), _running.get()
        if evaluation is None or evaluation.lm is not None or evaluation.arguments["model"] != model_name:
            return kind
        return _Creator(kind, evaluation)

    return get_model


class _Creator:
    """A class of lm-eval's models, as far as `simple_evaluate` uses it."""

    def __init__(self, kind: Any, evaluation: Evaluation) -> None:
        self._kind, self._evaluation = kind, evaluation

    def create_from_arg_obj(self, arguments: Any, additional_config: Any = None) -> Any:
        """Create a model from its arguments, by name or as a string."""
        return self._evaluation.create(self._kind, arguments, additional_config)

    create_from_arg_string = create_from_arg_obj


def _is_loaded(value: object) -> bool:
    return isinstance(value, torch.nn.Module | PreTrainedTokenizerBase)


def _quiet_commit(stock: Callable[[], Any]) -> Callable[[], Any]:
    """Look the commit up without git's complaint, where an evaluation of ours runs outside of a repository."""

    @functools.wraps(stock)
    def get_git_commit_hash() -> Any:
        evaluation = _running.get()
        if evaluation is None or not evaluation.is_ours:
            return stock()
        try:
            found = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return get_commit_from_path(Path.cwd())
        return found.stdout.strip() if found.returncode == 0 else get_commit_from_path(Path.cwd())

    return get_git_commit_hash
