"""Scores against costs, and many methods in a panel each."""

import json

import pandas as pd
import pytest
from made_results import line, save, save_results

from mesa_lm.reporting.cost_figure import cost_figure, pareto_front
from mesa_lm.reporting.panels_figure import panels_figure
from mesa_lm.reporting.ranking import rank
from mesa_lm.reporting.results import read


@pytest.mark.parametrize(
    ("placed", "front"),
    [
        ({"a": (1, 0.2), "b": (2, 0.5), "c": (3, 0.4), "d": (4, 0.9)}, ["a", "b", "d"]),
        ({"a": (1, 0.5), "b": (1, 0.7), "c": (2, 0.7)}, ["b"]),
        ({"a": (1, 0.5), "b": (1, 0.5)}, ["a", "b"]),
        ({"a": (3, 0.5)}, ["a"]),
    ],
    ids=["steps", "as dear or as good", "equals", "one"],
)
def test_the_front_has_what_no_other_method_beats(placed, front):
    assert pareto_front(placed) == front
    assert pareto_front({name: (cost, -score) for name, (cost, score) in placed.items()}, False) == front


def entries(folder, costs):
    for method, seconds in costs.items():
        path = save_results(folder, method, {512: {"a": 1.0, "b": 0.0}, 1024: {"a": 0.0, "b": 0.0}})
        report = json.loads(path.read_text())
        given = {"sample_s": seconds, "peak_bytes": 2.0**30 * (seconds or 0)}
        save(path, report | ({"sweep": {"costs": dict.fromkeys(report["configs"], given)}} if seconds else {}))
    return rank(read([folder]))


def test_a_panel_per_cost_with_a_mark_per_method(tmp_path):
    figure = cost_figure(entries(tmp_path, {"mesa": 1.0, "origin": 2.0, "yarn": None}), 4.0)
    assert [axes.get_xlabel() for axes in figure.axes] == ["time per sample (s)", "peak memory (GiB)"]
    marks = [one for one in figure.axes[0].lines if one.get_marker() != "None"]
    assert sorted((one.get_xdata()[0], one.get_ydata()[0]) for one in marks) == [(1.0, 0.25), (2.0, 0.25)]


def test_without_two_costs_there_is_no_figure(tmp_path):
    assert cost_figure(entries(tmp_path, {"mesa": 1.0, "origin": None}), 4.0) is None


def test_each_of_many_methods_has_its_panel_beside_origin():
    methods = ["origin", *(f"method{i} (a=1)" for i in range(20))]
    points = pd.concat([line({512: 1.0, 1024: 0.05 * i}, method=m) for i, m in enumerate(methods)])
    figure = panels_figure(points, 4.3)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    titles = [" ".join(axes.get_title(loc="left").split()) for axes in shown]
    assert len(shown) == 21 and titles[0] == "method19 (a=1)" and titles[-1] == "origin"
    assert len({tuple(axes.get_xlim()) + tuple(axes.get_ylim()) for axes in shown}) == 1
