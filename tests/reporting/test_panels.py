"""Heat maps by depth and lines by position, and the cost figures that draw beside them."""

from pathlib import Path

import pytest
from result_cells import line

from mesa_lm.errors import UsageError
from mesa_lm.reporting import panels, plots

GRID = [
    *line({512: 1.0, 2048: 0.4}, task="passkey_grid", metric="acc_depth_0"),
    *line({512: 1.0}, task="passkey_grid", metric="acc_depth_50"),
]
LOSS = {"task": "long_ppl", "stderr": 0.1, "higher_is_better": False}
POSITIONS = [*line({512: 2.0}, metric="nll_0_256", **LOSS), *line({512: 3.0}, metric="nll_256_512", **LOSS)]


def test_a_heat_map_shows_each_cell_at_its_place_and_leaves_out_the_rest():
    figure = panels._depth_figure([(cell, float(cell.metric.rpartition("_")[2])) for cell in GRID], "acc")
    axes = figure.axes[0]
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "100"),
        ((1, 0), "40"),
        ((0, 1), "100"),
    }
    assert [label.get_text() for label in axes.get_xticklabels()] == ["512", "2k"]
    assert axes.lines[0].get_xdata() == [0.5, 0.5]  # T = 512 lies after the first length


def test_nll_by_position_stands_at_the_middle_of_each_stretch():
    axes = panels._position_figure(POSITIONS).axes[0]
    assert list(axes.lines[0].get_xdata()) == [128, 384]
    assert list(axes.lines[0].get_ydata()) == [2.0, 3.0]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_files_are_written(tmp_path: Path, suffix: str):
    panels.draw_depths(GRID, "acc", tmp_path / f"depth.{suffix}")
    panels.draw_positions(POSITIONS, tmp_path / f"position.{suffix}")
    assert {path.name for path in tmp_path.iterdir()} == {f"depth.{suffix}", f"position.{suffix}"}


def test_results_without_depth_position_or_that_length_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="needed are results of passkey_grid"):
        panels.draw_depths(POSITIONS, "acc", tmp_path / "a.png")
    with pytest.raises(UsageError, match="needed are results of long_ppl"):
        panels.draw_positions(GRID, tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"length 700 \(allowed: 512\)"):
        panels.draw_positions(POSITIONS, tmp_path / "a.png", length=700)


def test_memory_is_drawn_in_gib_with_its_range_and_a_mark_where_it_ran_out():
    shared = {"task": "bench", "higher_is_better": False, "train_length": None}
    cells = line({1024: 2**31}, metric="peak_bytes", **shared)
    others = [
        *line({1024: 2**30}, metric="peak_bytes_min", **shared),
        *line({1024: 2**32}, metric="peak_bytes_max", **shared),
        *line({1024: 0.0, 4096: 1.0}, metric="oom", **shared),
    ]
    (axes,) = plots._figure(cells, others).axes
    (bar,) = axes.collections[0].get_segments()
    assert [y for _, y in bar] == [1.0, 4.0] and axes.get_ylabel() == "peak memory (GiB)"
    assert axes.get_yscale() == "log" and "OOM" in [text.get_text() for text in axes.texts]
