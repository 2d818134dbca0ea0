"""Lengths and their labels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesa_lm.lengths import length_label, length_name, parse_length, split_length_name

LENGTHS = [(512, "512"), (1024, "1k"), (3000, "3000"), (65536, "64k")]


@pytest.mark.parametrize(("length", "label"), LENGTHS)
def test_a_length_and_its_label(length: int, label: str) -> None:
    assert length_label(length) == label
    assert parse_length(label) == length


@given(st.integers(1, 10**9))
def test_every_label_is_read_as_the_length_it_was_written_for(length: int) -> None:
    assert parse_length(length_label(length)) == length
    assert parse_length(str(length)) == length
    assert split_length_name(length_name("a_b", length)) == ("a_b", length)


@pytest.mark.parametrize("label", ["", "k", "0", "0k", "07", "-5", "+5", "5K", "5kk", "1.5k", " 5", "5 ", "\u0665"])
def test_what_is_no_label(label: str) -> None:
    assert parse_length(label) is None


@pytest.mark.parametrize("name", ["a", "a_", "a_0", "a_k", "a_-5", "a_5K", "a_07", "a_1.5k", "5k", "_5k"])
def test_names_without_a_length(name: str) -> None:
    assert split_length_name(name) == (name, 0)
