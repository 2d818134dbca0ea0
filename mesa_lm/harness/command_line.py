"""What a user typed after `lm_eval`, looked at before lm-eval reads it: whether it is about this project, and slips."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml

from mesa_lm.errors import UsageError
from mesa_lm.harness.plugin import MODEL_NAME
from mesa_lm.harness.task_manager import OWN_GROUPS

# Options of lm-eval that take `name=value ...` or one JSON object.
DICT_OPTIONS = ("model_args", "gen_kwargs", "metadata", "wandb_args", "wandb_config_args", "hf_hub_log_args")
# What an option must be where its type has no name that a user knows.
ALLOWED = {
    "--limit": "a number",
    "--seed": "one whole number, or four separated by commas, None for no seed",
    "--samples": """JSON such as '{"passkey_long_1k": [0, 1]}'""",
    "--num_fewshot": "a whole number",
    "--max_batch_size": "a whole number",
}
# How alike a name must be to count as a slip.
_SLIP = 0.7


@dataclass(slots=True, kw_only=True)
class AskedRun:
    """The options of a command by which one tells what it is about.

    Attributes:
        model: Name of the model.
        tasks: Names of tasks.
        dicts: By option, each of the lists of values that were typed for it.
    """

    model: str = ""
    tasks: list[str] = field(default_factory=list)
    dicts: dict[str, list[list[str]]] = field(default_factory=dict)

    @property
    def resembles_ours(self) -> bool:
        """Whether the model or one of the tasks has a name of this project, or one like it."""
        return _is_like(self.model, [MODEL_NAME]) or any(_is_like(_group(task), OWN_GROUPS) for task in self.tasks)

    def check(self) -> None:
        """Refuse JSON that cannot be read, and what lm-eval would drop without a word.

        Raises:
            UsageError: There is such a thing.
        """
        for option, uses in self.dicts.items():
            for values in uses:
                if "{" in values[0][:1] and len(values) > 1:
                    raise UsageError(
                        f"--{option}: one JSON object, or name=value as often as needed; found more after the object: "
                        f"{values[1]!r} (JSON with spaces needs quotes around it)"
                    )


def asked_run(arguments: Sequence[str]) -> AskedRun:
    """Read the options that `AskedRun` holds, and leave the others to lm-eval.

    Args:
        arguments: Of the command, without its name.
    """
    parser = _Reader(add_help=False)
    parser.add_argument("--model", "-M")
    parser.add_argument("--tasks", "-t", nargs="*", action="extend")
    parser.add_argument("--config", "-C")
    parser.add_argument("--model_args", "-a", nargs="*", action="append")
    for option in DICT_OPTIONS[1:]:
        parser.add_argument(f"--{option}", nargs="*", action="append")
    try:
        found, _ = parser.parse_known_args(arguments)
    except UsageError:  # lm-eval refuses it, too
        return AskedRun(model=next((word for word in arguments if _is_like(word, [MODEL_NAME])), ""))
    from_file = _read_yaml(found.config) if found.config else {}
    tasks = from_file.get("tasks") or []
    asked = [*(found.tasks or ([tasks] if isinstance(tasks, str) else tasks))]
    return AskedRun(
        model=str(found.model or from_file.get("model") or ""),
        tasks=[name.strip() for names in asked if isinstance(names, str) for name in names.split(",")],
        dicts={option: [values for values in getattr(found, option) or [] if values] for option in DICT_OPTIONS},
    )


class _Reader(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, yaml.YAMLError):  # lm-eval says so
        return {}
    return found if isinstance(found, dict) else {}


def _group(task: str) -> str:
    """Return a task's name without what may be meant as a length."""
    return re.sub(r"_[-\d.]+k?$", "", task.lower())


def _is_like(name: str, names: Sequence[str] | frozenset[str]) -> bool:
    return bool(get_close_matches(name.lower(), names, n=1, cutoff=_SLIP))


def refuse_parse_error(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """Say in one line what argparse refuses.

    Args:
        parser: Whose options are allowed.
        message: What it would print.

    Raises:
        UsageError: Always.
    """
    unknown = re.fullmatch(r"unrecognized arguments: (\S+).*", message, re.DOTALL)
    if unknown:
        options = [option for option in _options(parser) if option.startswith("--")]
        near = get_close_matches(unknown[1].split("=")[0], options, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"unknown option {unknown[1]!r}{hint} (`lm_eval run --help` lists all)")
    invalid = re.fullmatch(r"argument (\S+?)(?:/\S+)?: invalid .* value: (.*)", message, re.DOTALL)
    if invalid:
        allowed = ALLOWED.get(invalid[1], "as `lm_eval run --help` says")
        raise UsageError(f"{invalid[1]} must be {allowed}; found {invalid[2]}")
    raise UsageError(" ".join(message.split()))


def _options(parser: argparse.ArgumentParser) -> list[str]:
    parsers = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parsers += action.choices.values()
    return [option for one in parsers for option in one._option_string_actions]
