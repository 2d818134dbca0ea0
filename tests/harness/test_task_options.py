"""What tasks share: option checks."""

import re

import pytest

from mesa_lm.errors import UsageError
from mesa_lm.harness.task_options import check_count, check_option_names, is_count, wrong_option


@pytest.mark.parametrize("names", [[], ["lengths"], ["max_length", "batch_size"]])
def test_own_and_unlike_names_pass(names: list[str]) -> None:
    check_option_names("song", dict.fromkeys(names, 1), ("lengths", "verses"))


def test_misspelt_names_are_refused_with_the_nearest() -> None:
    expected = "unknown song option 'verse'; did you mean 'verses'? (allowed: lengths, verses)"
    with pytest.raises(UsageError, match=re.escape(expected)):
        check_option_names("song", {"verse": 1}, ("lengths", "verses"))


@pytest.mark.parametrize(("value", "valid"), [(1, True), (0, False), (-1, False), (True, False), (1.0, False)])
def test_is_count(value: object, valid: bool) -> None:
    assert is_count(value) is valid


def test_check_count() -> None:
    check_count("song", "verses", {})
    check_count("song", "verses", {"verses": 3})
    with pytest.raises(UsageError, match="^song: verses must be a whole number of at least 1; found 0$"):
        check_count("song", "verses", {"verses": 0})


def test_wrong_option_says_what_was_found() -> None:
    assert str(wrong_option("song", "key", "a letter", {"key": "5"})) == "song: key must be a letter; found '5'"
