"""What a method costs within the training length, against the untouched model on the same samples."""

import pytest
from made_results import ranked, save_results

from mesa_lm.reporting.ranking import rank
from mesa_lm.reporting.results import read


def prices(entries):
    return {entry.method: entry.price for entry in entries}


def test_only_lengths_up_to_the_training_length_count_and_are_paired(tmp_path):
    found = prices(
        ranked(
            tmp_path, {"origin": {256: 20, 512: 18, 1024: 2}, "yarn": {256: 16, 512: 8, 1024: 20}, "mesa": {1024: 9}}
        )
    )
    assert found["origin"] is None and found["mesa"] is None
    price = found["yarn"]
    assert price.lengths == (256, 512)
    assert price.difference == pytest.approx(((16 - 20) + (8 - 18)) / 40)
    # Documents 16 to 19 differ at 256 tokens and 8 to 17 at 512: twelve, all in one direction.
    assert price.p_value == 2 / 2**12
    low, high = price.interval
    assert low < price.difference < high and high < 0


def test_the_bounds_are_the_means_of_those_of_the_lengths(tmp_path):
    alone = [prices(ranked(tmp_path / str(n), {"origin": {n: 20}, "yarn": {n: 12}}))["yarn"] for n in (256, 512)]
    both = prices(ranked(tmp_path / "both", {"origin": {256: 20, 512: 20}, "yarn": {256: 12, 512: 12}}))["yarn"]
    assert both.interval == pytest.approx(
        [sum(ends) / 2 for ends in zip(*(one.interval for one in alone), strict=True)]
    )


def test_methods_that_are_equal_have_an_interval_too(tmp_path):
    price = prices(ranked(tmp_path, {"origin": {512: 20}, "mesa": {512: 20}}))["mesa"]
    assert price.difference == 0 and price.p_value == 1
    assert price.interval.low == pytest.approx(-price.interval.high) and price.interval.high > 0.05


def test_without_samples_only_the_difference_is_told(tmp_path):
    for method, value in {"origin": 1.0, "mesa": 0.5}.items():
        save_results(tmp_path, method, {512: {"a": value, "b": value}}, logged=False)
    price = prices(rank(read([tmp_path])))["mesa"]
    assert (price.difference, price.interval, price.p_value) == (-0.5, None, None)
