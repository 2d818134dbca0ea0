"""Heat maps by depth and length."""

import pandas as pd
import pytest
from drawn_texts import faults
from made_results import line

from mesa_lm.errors import UsageError
from mesa_lm.reporting.depth_figure import depth_figure

GRID = {"task": "passkey_grid", "metric": "acc_depth_0"}
TABLE = pd.concat([line({512: 1.0, 2048: 0.4}, **GRID), line({512: 1.0}, **GRID | {"metric": "acc_depth_50"})])


def test_a_heat_map_shows_each_value_at_its_place_and_leaves_out_the_rest():
    axes = depth_figure(TABLE, "acc").axes[0]
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0.5), "100"),
        ((1, 0.5), "40"),
        ((0, 1.5), "100"),
    }
    assert [label.get_text() for label in axes.get_xticklabels()] == ["512", "2k"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0 %", "50 %"]
    assert axes.lines[0].get_xdata() == [0.5, 0.5]  # T = 512 lies after the first length


def test_every_method_has_a_map_of_the_same_lengths_and_depths_origin_first():
    figure = depth_figure(pd.concat([TABLE, line({4096: 0.0}, **GRID, method="origin", train_length=None)]), "acc")
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["origin", "mesa"]
    for axes in figure.axes[:2]:
        assert [label.get_text() for label in axes.get_xticklabels()] == ["512", "2k", "4k"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["0"]
    assert not figure.axes[0].lines  # T is unknown


def test_the_colour_bar_and_the_cells_have_one_unit_and_model_samples_and_t_are_named():
    figure = depth_figure(pd.concat([TABLE, line({4096: 0.0}, **GRID, samples=4)]), "acc")
    figure.draw_without_rendering()
    bar = figure.axes[-1]
    assert [label.get_text() for label in bar.get_yticklabels()][::5] == ["0 %", "100 %"]
    subtitle = " ".join(figure.texts[-1].get_text().split())
    assert subtitle == "model base; 4 to 20 samples per cell; dotted: training length T = 512"


@pytest.mark.parametrize(("lengths", "depths"), [(1, 1), (1, 5), (2, 11), (8, 5)])
@pytest.mark.parametrize("methods", [1, 2, 5, 16])
def test_no_text_is_cut_off_or_covers_another(methods, lengths, depths):
    names = ["origin", "mesa (extrapolated_width=100, weave=self_extend)", *(f"method{i}" for i in range(14))][:methods]
    values = {512 * 2**step: 0.5 for step in range(lengths)}
    rows = [
        line(values, method=name, **GRID | {"metric": f"acc_depth_{100 // depths * step}"})
        for name in names
        for step in range(depths)
    ]
    assert faults(depth_figure(pd.concat(rows), "acc")) == []


def test_results_without_depth_are_refused():
    with pytest.raises(UsageError, match="no f1 by depth in the results: needed are results of passkey_grid"):
        depth_figure(TABLE, "f1")
