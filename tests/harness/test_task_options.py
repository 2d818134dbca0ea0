"""What tasks share: option checks."""

import re

import pytest

from mesa_lm.errors import UsageError
from mesa_lm.harness.task_options import COUNT, TEXT, WHOLE_NUMBER, check_task_options, is_count, is_shares

RULES = {"verses": COUNT, "seed": WHOLE_NUMBER, "tune": TEXT.or_none(), "key": ("major", "minor")}


@pytest.mark.parametrize("names", [[], ["lengths"], ["max_length", "batch_size"]])
def test_own_and_unlike_names_pass(names: list[str]) -> None:
    check_task_options("song", RULES, dict.fromkeys(names, 1))


@pytest.mark.parametrize(
    "options", [{"verses": 3, "seed": -1, "tune": "low", "key": "minor"}, {"tune": None, "seed": 0}]
)
def test_allowed_values_pass(options: dict[str, object]) -> None:
    check_task_options("song", RULES, options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"verse": 1},
            "unknown song option 'verse'; did you mean 'verses'? (allowed: key, lengths, seed, tune, verses)",
        ),
        ({"verses": 0}, "song: verses must be a whole number of at least 1; found 0"),
        ({"verses": None}, "song: verses must be a whole number of at least 1; found None"),
        ({"seed": True}, "song: seed must be a whole number; found True"),
        ({"tune": ""}, "song: tune must be a string; found ''"),
        ({"key": "mino"}, "unknown song key 'mino'; did you mean 'minor'? (allowed: major, minor)"),
        ({"key": ["minor"]}, "unknown song key \"['minor']\"; did you mean 'minor'? (allowed: major, minor)"),
    ],
)
def test_others_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        check_task_options("song", RULES, options)


@pytest.mark.parametrize(("value", "valid"), [(1, True), (0, False), (-1, False), (True, False), (1.0, False)])
def test_is_count(value: object, valid: bool) -> None:
    assert is_count(value) is valid


@pytest.mark.parametrize(
    ("value", "valid"), [([0, 0.5, 1], True), ([], False), ([1.1], False), ([True], False), (0.5, False)]
)
def test_is_shares(value: object, valid: bool) -> None:
    assert is_shares(value) is valid
