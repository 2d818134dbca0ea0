"""Colours that hold everywhere and for everyone, and texts that fit."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from made_results import line

from mesa_lm.methods.registry import available_methods
from mesa_lm.reporting.figure_style import COLOURS, INK, LOOKS, lines_of, text_width, ticks_with_room, wrapped
from mesa_lm.studies.bench.timing import STOCK_NAME

# Machado, Oliveira and Fernandes 2009, A physiologically-based model for simulation of color vision deficiency:
# what a display's linear red, green and blue become for someone who lacks one kind of cones altogether.
SEEN_BY = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
    "normal": np.eye(3),
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour):
    parts = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIE L*a*b* of linear red, green and blue."""
    x, y, z = np.cbrt(np.clip(XYZ @ rgb / XYZ.sum(axis=1), 0.008856, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", SEEN_BY)
def test_any_two_colours_differ_for_every_form_of_colour_vision(vision):
    seen = [lab(np.clip(np.array(SEEN_BY[vision]) @ linear(colour), 0, 1)) for colour in COLOURS]
    # About 2 is the least difference that is noticed side by side.
    assert min(np.linalg.norm(first - second) for first, second in combinations(seen, 2)) > 14


@pytest.mark.parametrize(("paper", "ink"), [("#ffffff", INK), ("#16181d", "#ececee")])
def test_colours_stand_out_on_light_and_dark_paper(paper, ink):
    def contrast(colour):
        first, second = sorted(XYZ[1] @ linear(shade) for shade in (colour, paper))
        return (second + 0.05) / (first + 0.05)

    assert contrast(ink) > 12
    assert min(map(contrast, COLOURS[:-1])) > 2.2


def test_every_method_has_a_look_of_its_own():
    assert LOOKS.keys() >= {*available_methods(), STOCK_NAME}
    assert len(set(LOOKS.values())) == len(LOOKS)


def looks(*methods, model="org/base"):
    return {
        one.label: one.look for one in lines_of(pd.concat([line({512: 1.0}, method=m, model=model) for m in methods]))
    }


def test_a_method_looks_the_same_whatever_stands_beside_it():
    alone, together = looks("rerope"), looks("origin", "mesa", "rerope", "yarn")
    assert alone["rerope"] == together["rerope"] == LOOKS["rerope"]
    assert looks("rerope (window=64)")["rerope (window=64)"] == LOOKS["rerope"]


def test_variants_and_methods_of_others_take_looks_that_no_other_line_has():
    found = looks("mesa", "mesa (weave=rerope)", "mesa (weave=stair)", "origin", "ours", "rerope", "theirs", "yarn")
    assert len(set(found.values())) == 8
    assert {name: found[name] for name in ("mesa", "origin", "rerope", "yarn")} == {
        name: LOOKS[name] for name in ("mesa", "origin", "rerope", "yarn")
    }


def test_what_has_no_look_of_its_own_takes_the_same_one_in_figures_of_the_same_lines():
    assert looks("mesa", "ours", "theirs") == looks("theirs", "ours", "mesa")
    assert len(set(looks("mesa", *(f"mesa (first_chunk={i})" for i in range(20))).values())) == 21


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("mesa (window=1, weave=stair)", ["mesa (window=1,", "weave=stair)"]),
        ("extrapolated_width_of_a_method", ["extrapolated_", "width_of_a_", "method"]),
        ("two\nlines", ["two lines"]),
        ("", [""]),
    ],
)
def test_texts_are_broken_at_spaces_then_behind_signs(text, lines):
    assert wrapped(text, text_width("mesa (window=1,")).split("\n") == lines


def test_a_word_without_any_sign_is_broken_anywhere():
    lines = wrapped("x" * 50, 1.0).split("\n")
    assert "".join(lines) == "x" * 50
    assert max(map(text_width, lines)) <= 1.0


def test_labels_that_would_touch_are_left_out_the_less_important_first():
    assert ticks_with_room([0, 0.1, 2], ["1k", "1100", "4k"], [0, 2, 1]) == [0, 2]
    assert ticks_with_room([0, 0.1, 2], ["1k", "1100", "4k"], [1, 0, 2]) == [1, 2]
