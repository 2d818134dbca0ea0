"""Refuse arguments of an evaluation that would fail late, lose results or be ignored, before a model is loaded."""

import math
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker
from lm_eval.utils import sanitize_model_name, simple_parse_args_string

from mesa_lm.errors import UsageError, unknown_name
from mesa_lm.harness.task_manager import TaskManager, is_own_task
from mesa_lm.harness.tokenizing import TOKENIZER_ARGS

# Arguments of lm-eval that reach the model beside `model_args`; given in both, they are an error of Python's.
BESIDE_MODEL_ARGS = ("batch_size", "max_batch_size", "device")


def check_evaluation(arguments: Mapping[str, Any]) -> None:
    """Check the arguments of lm-eval's `simple_evaluate`.

    Args:
        arguments: By name; those that are left out are not among them.

    Raises:
        UsageError: One of them is wrong.
    """
    model_args = arguments.get("model_args") or {}
    if isinstance(model_args, str):
        model_args = simple_parse_args_string(model_args)
    for name in BESIDE_MODEL_ARGS:
        if name in model_args and arguments.get(name) is not None:
            raise UsageError(f"{name} is given twice: leave it out of model_args, --{name} says it")
    check_limit(arguments.get("limit"))
    tracker = arguments.get("evaluation_tracker")
    if tracker is not None and tracker.output_path:
        path = Path(tracker.output_path)
        name = GeneralConfigTracker._get_model_name(model_args)
        check_writable(path.parent if path.suffix == ".json" else path / sanitize_model_name(name or ""), "output_path")
    if arguments.get("use_cache"):
        check_writable(Path(arguments["use_cache"]).parent, "use_cache")
    if isinstance(arguments["model"], str):
        _check_task_arguments(arguments, model_args)


def _check_task_arguments(arguments: Mapping[str, Any], model_args: Mapping[str, Any]) -> None:
    """Refuse options of tasks, and examples, of which no task knows anything."""
    manager = arguments.get("task_manager")
    given = manager.metadata if manager is not None else arguments.get("metadata")
    given = given or {}
    tasks = arguments.get("tasks") or []
    known = (manager if isinstance(manager, TaskManager) else TaskManager()).option_names(tasks)
    if known is None:  # other tasks read what they like
        return
    # lm-eval's command hands over metadata and the arguments of the model as one.
    own = [name for name, value in given.items() if name not in model_args or model_args[name] is not value]
    allowed = {*known, *TOKENIZER_ARGS} if "tokenizer" in own else known
    for name in own:
        if name not in allowed:
            raise UsageError(f"{unknown_name('option in metadata', name, known)}; model_args has those of the model")
    if arguments.get("num_fewshot"):
        raise UsageError(
            f"num_fewshot must be 0 for {', '.join(map(str, tasks))}, whose prompts have no examples; "
            f"found {arguments['num_fewshot']}"
        )


def check_limit(limit: float | None) -> None:
    """Check the number of samples, or the share of them, that an evaluation is limited to.

    Raises:
        UsageError: It is neither.
    """
    if limit is not None and not (0 < limit < 1 or (1 <= limit < math.inf and limit == int(limit))):
        raise UsageError(
            f"limit must be a whole number of samples, at least 1, or a share between 0 and 1; found {limit}"
        )


def check_samples(task_dict: Mapping[Any, Any], samples: object) -> None:
    """Check which samples an evaluation is to take of this project's tasks.

    Args:
        task_dict: What lm-eval's task manager loaded.
        samples: For names of tasks the places of samples; None for all.

    Raises:
        UsageError: A task that is not evaluated, or a sample that does not exist.
    """
    tasks: Mapping[str, Any] = task_dict.get("tasks", {})
    if samples is None or not any(map(is_own_task, tasks)):
        return
    if not isinstance(samples, dict):
        raise UsageError(
            f"""samples must name places by task, such as {{"{next(iter(tasks))}": [0, 1]}}; found {samples!r}"""
        )
    for name, places in samples.items():
        if name not in tasks:
            raise UsageError(unknown_name("task in samples", str(name), tasks))
        count = len(tasks[name].eval_docs)
        if not _are_places(places, count):
            raise UsageError(
                f"samples of {name} must be a list of whole numbers from 0 to {count - 1}; found {places!r}"
            )


def check_request_types(task_dict: Mapping[Any, Any], lm: Any) -> None:
    """Check that the model answers the kinds of requests that this project's tasks make, before any is made.

    Args:
        task_dict: What lm-eval's task manager loaded.
        lm: The model.

    Raises:
        UsageError: It does not.
    """
    for name, task in task_dict.get("tasks", {}).items():
        for kind in getattr(task, "request_types", ()):
            if not hasattr(lm, kind):
                raise UsageError(
                    f"{name} makes requests of the kind {kind}, which --model mesa-hf answers and "
                    f"{type(getattr(lm, 'lm', lm)).__name__} does not; leave key_spans out"
                )


def _are_places(places: object, count: int) -> bool:
    return isinstance(places, Collection) and bool(places) and all(type(n) is int and 0 <= n < count for n in places)


def check_writable(folder: Path, option: str) -> None:
    """Check that files can be created in a folder, or in one of its name; nothing is left behind.

    Args:
        folder: The folder.
        option: What names it, for the error.

    Raises:
        UsageError: They cannot.
    """
    missing: list[Path] = []
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"{option}: nothing can be saved in {str(folder)!r}: {error.strerror or error}") from None
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
