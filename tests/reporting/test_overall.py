"""Methods over all tasks of a model."""

import json

import command_line
import pytest
from made_results import ranked, save, save_results

from mesa_lm.cli.leaderboard import _print_overall
from mesa_lm.reporting.overall import overall_tables
from mesa_lm.reporting.ranking import rank
from mesa_lm.reporting.results import read


def table(folder):
    (found,) = overall_tables(rank(read([folder])))
    return found, {row.method: row for row in found.rows}


def two_tasks(folder):
    ranked(folder, {"origin": {512: 20, 1024: 10, 2048: 0}, "mesa": {512: 20, 1024: 20, 2048: 10}})
    ranked(folder, {"origin": {512: 10, 1024: 5, 2048: 0}, "mesa": {512: 10, 1024: 5, 2048: 5}}, task="lines")
    return folder


def test_shares_of_origin_within_t_and_means_weighted_by_length(tmp_path):
    found, rows = table(two_tasks(tmp_path))
    assert (found.tasks, found.without_share) == (["keys", "lines"], [])
    mesa = rows["mesa"]  # keys 1, 1, 1/2 of origin's 1; lines 1, 1/2, 1/2 of origin's 1/2
    assert mesa.share == pytest.approx((2.5 / 3 + 2 / 3) / 2)
    assert mesa.towards_longer == pytest.approx(((1 + 2 + 1.5) / 6 + (1 + 1 + 1.5) / 6) / 2)
    assert mesa.towards_shorter == pytest.approx(((3 + 2 + 0.5) / 6 + (3 + 1 + 0.5) / 6) / 2)
    assert (mesa.mean_rank, rows["origin"].mean_rank) == (1, 2)
    assert rows["origin"].share == pytest.approx(0.5) and [row.method for row in found.rows] == ["mesa", "origin"]


def test_the_table_is_printed_below_those_of_the_tasks(tmp_path, capsys):
    shown = command_line.run("leaderboard", two_tasks(tmp_path)).output
    assert "## org/base: all tasks" in shown
    assert shown.splitlines()[-2:] == [
        "| 1 | mesa | 1.0 | 75.0 % | 66.7 % | 83.3 % |",
        "| 2 | origin | 2.0 | 50.0 % | 33.3 % | 66.7 % |",
    ]
    _print_overall(rank(read([tmp_path])))
    assert ["1", "mesa", "1.0", "75.0", "%", "66.7", "%", "83.3", "%"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


def test_what_is_missing_is_named_and_never_imputed(tmp_path):
    two_tasks(tmp_path)
    ranked(tmp_path, {"rerope": {512: 20, 1024: 20}})
    path = save_results(tmp_path, "yarn", {512: {"x": 1.0}, 1024: {"x": 1.0}})
    report = json.loads(path.read_text())
    save(path, report | {"sweep": {"out_of_memory": ["keys_2k"]}})
    found, rows = table(tmp_path)
    assert rows["rerope"].missing == ("keys at 2k", "lines")
    assert rows["yarn"].missing == ("keys at 2k (OOM)", "lines")
    assert rows["rerope"][2:6] == (None,) * 4
    assert [row.method for row in found.rows][:2] == ["mesa", "origin"]


def test_a_task_that_origin_cannot_do_has_ranks_and_no_shares(tmp_path):
    two_tasks(tmp_path)
    ranked(tmp_path, {"origin": {512: 0}, "mesa": {512: 3}}, task="hard")
    found, rows = table(tmp_path)
    assert found.without_share == ["hard"]
    assert rows["mesa"].share == pytest.approx((2.5 / 3 + 2 / 3) / 2)


def test_one_task_and_losses_have_no_overall_table(tmp_path):
    ranked(tmp_path, {"origin": {512: 20}})
    save_results(tmp_path, "mesa", {512: {"a": 2.0}}, task="text", metric="nll")
    assert list(overall_tables(rank(read([tmp_path])))) == []
