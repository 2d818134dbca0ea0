"""Lines by position within one input."""

from itertools import pairwise

import pandas as pd
import pytest
from drawn_texts import faults
from made_results import line

from mesa_lm.errors import UsageError
from mesa_lm.reporting.position_figure import position_figure

LOSS = {"task": "long_ppl", "stderr": 0.1, "higher_is_better": False}
STRETCHES = [line({512: 2.0}, metric="nll_0_256", **LOSS), line({512: 3.0}, metric="nll_256_512", **LOSS)]
TABLE = pd.concat([*STRETCHES, line({512: 2.5, 256: 2.0}, metric="nll", **LOSS)])


def test_nll_by_position_stands_at_the_middle_of_each_stretch():
    figure = position_figure(TABLE)
    (axes,) = figure.axes
    assert list(axes.lines[0].get_xdata()) == [128, 384]
    assert list(axes.lines[0].get_ydata()) == [2.0, 3.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["256", "512"]
    assert "20 samples" in figure.texts[1].get_text()


def test_the_longest_length_is_drawn_unless_another_is_asked_for():
    longer = line({1024: 1.5}, metric="nll_0_256", method="origin", **LOSS)
    table = pd.concat([TABLE, longer])
    assert list(position_figure(table).axes[0].lines[0].get_ydata()) == [1.5]
    assert list(position_figure(table, 512).axes[0].lines[0].get_ydata()) == [2.0, 3.0]


@pytest.mark.parametrize("stretches", [1, 2, 8])
@pytest.mark.parametrize("methods", [1, 2, 8, 16])
def test_no_text_is_cut_off_or_covers_another(methods, stretches):
    edges = [0, *(256 * 2**step for step in range(stretches))]
    table = [
        line({65536: 2.0}, metric=f"nll_{start}_{end}", method=f"method{index} (window={index})", **LOSS)
        for index in range(methods)
        for start, end in pairwise(edges)
    ]
    assert faults(position_figure(pd.concat(table))) == []


def test_results_without_position_or_that_length_are_refused():
    with pytest.raises(UsageError, match="needed are results of long_ppl"):
        position_figure(line({512: 1.0}))
    with pytest.raises(UsageError, match=r"length 700 \(allowed: 512\)"):
        position_figure(TABLE, length=700)
