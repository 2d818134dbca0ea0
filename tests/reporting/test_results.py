"""The table of results: what is in it, and what is chosen from it."""

import logging
from pathlib import Path

import pandas as pd
import pytest
from made_results import measurement, report, save

from mesa_lm.errors import UsageError
from mesa_lm.reporting.results import NULLABLE, RESULT_COLUMNS, Results, measurements, read, table_of


def test_the_table_has_one_row_per_measurement_with_types_and_bounds(tmp_path: Path) -> None:
    path = save(tmp_path / "results_1.json", report({1024: 0.5, 512: 1.0}))
    results = read([path])

    assert list(results.table) == RESULT_COLUMNS
    types = results.table.dtypes.astype(str)
    assert [types[column] for column in ("model", "length", "value", "is_share")] == ["str", "int64", "float64", "bool"]
    assert {column: types[column] for column in NULLABLE} == NULLABLE
    assert list(results.table.length) == [512, 1024]
    assert set(results.table.source) == set(results.files) == {path}
    assert [(row.low, row.high) for row in results.table.itertuples()] == [
        pytest.approx((0.7225, 1.0), abs=1e-4),  # 10 of 10
        pytest.approx((0.2366, 0.7634), abs=1e-4),
    ]
    assert pd.isna(results.table.train_length).all() and results.table.is_share.all()


def test_rows_become_measurements_again() -> None:
    given = [
        measurement(),
        measurement(stderr=0.1, samples=None, higher_is_better=None, train_length=None, value=3.0),
    ]
    found = list(measurements(table_of(given)))
    assert found == given
    assert [list(map(type, row)) for row in found] == [list(map(type, row)) for row in given]  # JSON takes no numpy's


def test_newest_wins_per_length(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    new = save(tmp_path / "a" / "results_b.json", report({512: 0.2, 1024: 0.4}, date=7.0))
    old = save(tmp_path / "b" / "results_a.json", report({1024: 0.6, 2048: 0.8}, date=5.0))

    with caplog.at_level(logging.WARNING):
        results = read([tmp_path])

    assert dict(zip(results.table.length, results.table.value, strict=True)) == {512: 0.2, 1024: 0.4, 2048: 0.8}
    assert caplog.messages == [f"{new} replaces the older {old} at 1k"]


def test_a_file_that_gives_no_row_is_not_among_the_sources(tmp_path: Path) -> None:
    new = save(tmp_path / "b.json", report({512: 0.2}, date=7.0))
    save(tmp_path / "a.json", report({512: 0.4}, date=5.0))

    assert list(read([tmp_path]).files) == [new]


def test_a_file_given_twice_is_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "results_1.json", report({512: 0.2}))

    assert len(read([tmp_path, path]).table) == 1
    assert not caplog.messages


def test_results_without_a_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"no results per length in {tmp_path}: found no results file"):
        read([tmp_path])
    save(tmp_path / "results_1.json", report({}))
    with pytest.raises(UsageError, match="found only tasks that name no length"):
        read([tmp_path])


def chosen() -> Results:
    rows = [measurement(), measurement(metric="nll", task="text"), measurement(task="keys")]
    rows.append(measurement(task="keys", metric="f1", source=Path("results_2.json")))
    return Results(table_of(rows), {path: path for path in (Path("results_1.json"), Path("results_2.json"))})


def test_rows_are_chosen_with_their_files() -> None:
    keys = chosen().where(task="keys", method=None)

    assert list(keys.table.metric) == ["acc", "f1"]
    assert list(keys.where(metric="f1").files) == [Path("results_2.json")]
    assert keys.where(model="nobody").table.empty


def test_select_one_metric_of_one_task() -> None:
    results = chosen()

    assert list(results.select("f1").table.index) == [3]
    assert list(results.select("acc", "keys").table.index) == [2]
    with pytest.raises(UsageError, match=r"several tasks have the metric 'acc'.*--task \(keys, passkey_long\)"):
        results.select("acc")
    with pytest.raises(UsageError, match=r"unknown task 'key'; did you mean 'keys'\? \(allowed: keys, passkey_long, t"):
        results.select("acc", "key")
    with pytest.raises(UsageError, match=r"unknown metric 'f2' \(allowed: acc, f1\)"):
        results.select("f2", "keys")
