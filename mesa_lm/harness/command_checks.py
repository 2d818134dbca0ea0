"""Refuse what a user typed after `lm_eval` before anything is loaded, in runs of this project's model or tasks."""

import contextlib
import glob
import io
import logging
from argparse import Namespace
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401  # fills the registry
from lm_eval.api.registry import model_registry
from lm_eval.config.evaluate_config import DICT_KEYS, EvaluatorConfig

from mesa_lm.errors import UsageError, unknown_name
from mesa_lm.harness.evaluation_checks import check_limit
from mesa_lm.harness.generation_settings import check_generation
from mesa_lm.harness.model_args import check_device
from mesa_lm.harness.plugin import MODEL_NAME
from mesa_lm.harness.task_manager import TaskManager
from mesa_lm.lengths import split_length_name

LOG_LEVELS = tuple(logging.getLevelNamesMapping())


def checked_config(args: Namespace) -> Any:
    """Return lm-eval's configuration of a run, once everything in it that can be checked early is right.

    Args:
        args: Of its command line.

    Raises:
        MesaError: Something is wrong.
    """
    from_file = _file_of(args)
    logger = logging.getLogger("lm_eval")
    level = logger.level
    try:
        logger.setLevel(logging.CRITICAL)  # it says the same once more when it runs
        with contextlib.redirect_stdout(io.StringIO()):
            config = EvaluatorConfig.from_cli(args)
    except (ValueError, TypeError, OSError) as error:
        raise UsageError(" ".join(str(error).split())) from None
    finally:
        logger.setLevel(level)
    if config.model not in model_registry:
        raise UsageError(unknown_name("model", str(config.model), model_registry))
    if config.verbosity is not None and str(config.verbosity).upper() not in LOG_LEVELS:
        raise UsageError(unknown_name("verbosity", str(config.verbosity), LOG_LEVELS))
    check_limit(config.limit)
    if config.include_path is not None and not Path(config.include_path).is_dir():
        raise UsageError(f"include_path: there is no folder {config.include_path!r}")
    if config.model == MODEL_NAME:
        # Left out, it is "cuda:0" in lm-eval, also where there is none.
        device = getattr(args, "device", None) or from_file.get("device")
        if device is not None:
            check_device(device)
        check_generation(config.gen_kwargs)
    _check_tasks(config)
    return config


def _file_of(args: Namespace) -> dict[str, Any]:
    """Return the content of the YAML file that `--config` names, its keys and sections checked."""
    if not getattr(args, "config", None):
        return {}
    try:
        found: dict[str, Any] = EvaluatorConfig.load_yaml_config(args.config)
    except (ValueError, TypeError, OSError) as error:
        raise UsageError(" ".join(str(error).split())) from None
    names = [one.name for one in fields(EvaluatorConfig)]
    for name, value in found.items():
        if name not in names:
            raise UsageError(unknown_name(f"key in {args.config}", str(name), names))
        if name in DICT_KEYS and not isinstance(value, dict | str | None):
            raise UsageError(f"{args.config}: {name} must hold names and values; found {value!r}")
    return found


def _check_tasks(config: Any) -> None:
    """Check that tasks are named, exist, and stand for no length twice."""
    given = config.tasks
    if not isinstance(given, str) and not (isinstance(given, list) and all(isinstance(name, str) for name in given)):
        raise UsageError(f"tasks must be names, separated by commas; found {given!r}")
    asked = given.split(",") if isinstance(given, str) else [name for names in given for name in names.split(",")]
    if not any(asked):
        raise UsageError("no tasks are named: --tasks passkey_long, for example; `lm_eval ls tasks` lists them")
    manager = TaskManager(include_path=config.include_path, metadata=config.metadata)
    for name, count in Counter(asked).items():
        if count > 1:
            raise UsageError(f"task {name!r} is named {count} times")
    names: list[str] = []
    for name in asked:
        if name.endswith(".yaml"):  # files of the user's, which lm-eval reads
            if not glob.glob(name):  # noqa: PTH207  # as it does
                raise UsageError(f"tasks: there is no file {name!r}")
            continue
        found = manager.match_tasks([name])
        if not found and len(asked) == 1 and _is_folder(name):
            continue
        if not found:
            raise manager.unknown_task(name)
        names += [one for one in found if one not in names]
    _check_lengths(manager, names)


def _is_folder(name: str) -> bool:
    try:
        return bool(name) and Path(name).is_dir()
    except (OSError, ValueError):  # no name of a file
        return False


def _check_lengths(manager: TaskManager, names: list[str]) -> None:
    """Check that no length is asked for twice, by a group and by itself or under two names."""
    sources: dict[tuple[str, int], str] = {}
    for name in names:
        for task in sorted(manager.length_tasks(name)):
            length = split_length_name(task)
            if sources.setdefault(length, name) != name:
                raise UsageError(
                    f"tasks {sources[length]!r} and {name!r} both stand for {length[0]} at {length[1]} tokens"
                )
