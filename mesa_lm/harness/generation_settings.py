"""Refuse settings of generation (`gen_kwargs`) that are misspelt or wrong, before anything is loaded."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from transformers import GenerationConfig

from mesa_lm.errors import UsageError, unknown_name
from mesa_lm.harness.task_options import COUNT, OptionRule

# What settings may be, beside what transformers checks before it generates.
RULES = {
    "max_gen_toks": COUNT,
    "until": OptionRule(lambda value: isinstance(value, str | list), "a string or a list of strings"),
    "do_sample": OptionRule(lambda value: isinstance(value, bool), "true or false"),
    "temperature": OptionRule(lambda value: _is_number(value) and value >= 0, "a number of at least 0"),
    "top_p": OptionRule(lambda value: _is_number(value) and 0 < value <= 1, "a number above 0, at most 1"),
    "top_k": OptionRule(lambda value: type(value) is int and value >= 0, "a whole number of at least 0"),
    "repetition_penalty": OptionRule(lambda value: _is_number(value) and value > 0, "a number above 0"),
}
OF_LM_EVAL = ("until", "max_gen_toks")  # which transformers knows nothing of


def _is_number(value: object) -> TypeGuard[float]:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def check_generation(given: Mapping[str, Any]) -> None:
    """Check settings of generation, by rules of our own and by transformers' configuration of them.

    Raises:
        UsageError: One is unknown or wrong.
    """
    known = [*vars(GenerationConfig()), *OF_LM_EVAL]
    for name in given:
        if name not in known or name.startswith("_"):
            raise UsageError(unknown_name("name in gen_kwargs", str(name), (n for n in known if n[0] != "_")))
        rule = RULES.get(name)
        if rule is not None and not rule.fits(given[name]):
            raise UsageError(f"gen_kwargs: {name} must be {rule.allowed}; found {given[name]!r}")
    if given.get("do_sample") and not given.get("temperature", 1):
        raise UsageError("gen_kwargs: temperature must be above 0 where do_sample is true; found 0")
    try:
        GenerationConfig(**{name: value for name, value in given.items() if name not in OF_LM_EVAL}).validate()
    except Exception as error:  # it compares what it is given, of whatever type
        reason = " ".join(str(error).split())
        raise UsageError(f"gen_kwargs {given} are refused by transformers: {reason}") from None
