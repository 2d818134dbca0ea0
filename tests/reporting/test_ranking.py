"""How methods are ranked, and what counts as a change."""

import pytest
from helpers import save_results

from mesa_lm.reporting.changes import changes
from mesa_lm.reporting.ranking import holm, rank
from mesa_lm.reporting.results import interval, read


def scored(right: int, of: int = 20) -> dict[str, float]:
    return {f"doc{i}": float(i < right) for i in range(of)}


def ranked(folder, methods: dict[str, dict[int, int]], **options):
    for method, right in methods.items():
        save_results(folder, method, {length: scored(n) for length, n in right.items()}, **options)
    return rank(read([folder]))


def test_the_longer_effective_length_comes_first_then_the_mean(tmp_path):
    entries = ranked(
        tmp_path,
        {
            "origin": {512: 20, 1024: 20, 2048: 2},
            "mesa": {512: 20, 1024: 18, 2048: 18},
            "rerope": {512: 16, 1024: 14, 2048: 14},  # 85% of its own 16 is 13.6
            "linear": {512: 0, 1024: 0, 2048: 0},
            "stair": {512: 20, 1024: 17, 2048: 20},  # 17 is not above 85% of 20
        },
    )
    assert [(e.rank, e.method, e.effective_length) for e in entries] == [
        (1, "mesa", 2048),
        (2, "rerope", 2048),
        (3, "origin", 1024),
        (4, "stair", 512),
        (5, "linear", None),
    ]
    assert entries[0].mean == pytest.approx((20 + 18 + 18) / 60)


def test_equals_share_a_rank(tmp_path):
    entries = ranked(tmp_path, {"a": {512: 20}, "b": {512: 20}, "c": {512: 19}})
    assert [entry.rank for entry in entries] == [1, 1, 3]


def test_lengths_that_were_not_measured_are_named(tmp_path):
    entries = ranked(tmp_path, {"a": {512: 20, 1024: 20}, "b": {512: 20}})
    assert [(entry.method, entry.missing) for entry in entries] == [("a", ()), ("b", (1024,))]


def test_nothing_is_claimed_beyond_a_length_that_was_not_measured(tmp_path):
    entries = ranked(
        tmp_path, {"a": {512: 20, 1024: 20, 2048: 20}, "b": {512: 20, 2048: 20}, "c": {1024: 20, 2048: 20}}
    )
    assert {entry.method: entry.effective_length for entry in entries} == {"a": 2048, "b": 512, "c": None}


def test_equal_effective_lengths_are_ordered_by_the_lengths_that_both_have(tmp_path):
    # Over its own lengths "a" has the higher mean only because it was not measured where all fail.
    entries = ranked(tmp_path, {"a": {512: 19, 1024: 19}, "b": {512: 20, 1024: 20, 2048: 0}})
    assert [(entry.method, entry.rank) for entry in entries] == [("b", 1), ("a", 2)]
    assert entries[0].mean < entries[1].mean


def test_without_a_length_within_training_nothing_can_be_said(tmp_path):
    (entry,) = ranked(tmp_path, {"a": {1024: 20, 2048: 20}})
    assert (entry.effective_length, entry.mean) == (None, 1.0)


def test_p_values_are_corrected_for_the_number_of_methods(tmp_path):
    # Against 20 right of 20: 6 lost, p = 2/2**6; 8 lost, p = 2/2**8. Holm: the smaller times 2, the larger times 1.
    entries = ranked(tmp_path, {"a": {512: 20}, "b": {512: 14}, "c": {512: 12}})
    assert [entry.p_best for entry in entries] == [None, pytest.approx(2 / 2**6), pytest.approx(2 * 2 / 2**8)]


def test_without_samples_there_is_no_p_value(tmp_path):
    entries = ranked(tmp_path, {"a": {512: 20}, "b": {512: 10}}, logged=False)
    assert [entry.p_best for entry in entries] == [None, None]


def test_the_interval_of_one_length_is_its_own(tmp_path):
    (entry,) = ranked(tmp_path, {"a": {512: 20}})
    assert entry.mean_interval == pytest.approx(interval(entry.cells[0]))


def test_the_loss_and_the_costs_come_from_other_tasks(tmp_path):
    losses = {512: {"x": 2.0, "y": 3.0}, 1024: {"x": 3.0, "y": 4.0}}
    save_results(tmp_path, "mesa", losses, metric="nll", task="text")
    for length, seconds in ((4096, 1.5), (8192, 3.5)):
        save_results(tmp_path / str(length), "mesa", {length: {"x": seconds}}, metric="decode_s", task="bench")
    (entry,) = [entry for entry in ranked(tmp_path, {"mesa": {512: 20}}) if entry.task == "keys"]
    assert entry.loss == 3.0
    assert (entry.costs, entry.cost_length) == ({"decode_s": 3.5}, 8192)


def test_costs_are_compared_at_the_longest_length_that_all_methods_finished(tmp_path):
    for method, lengths in {"mesa": (1024, 2048, 4096), "rerope": (1024, 2048)}.items():
        for length in lengths:
            costs = {length: {"x": float(length)}}
            save_results(tmp_path / str(length), method, costs, metric="peak_bytes", task="bench")
    save_results(tmp_path / "4096", "rerope", {4096: {"x": 1.0}}, metric="oom", task="bench")
    save_results(tmp_path / "2048", "rerope", {2048: {"x": 0.0}}, metric="oom", task="zero")
    entries = [e for e in ranked(tmp_path, {"mesa": {512: 20}, "rerope": {512: 20}}) if e.task == "keys"]
    assert [(e.costs["peak_bytes"], e.cost_length, e.cost_out_of_memory) for e in entries] == [
        (2048, 2048, None),
        (2048, 2048, 4096),
    ]


def test_the_loss_is_compared_over_the_lengths_that_all_methods_have(tmp_path):
    for method, lengths in {"mesa": (512, 1024), "origin": (512,)}.items():
        losses = {length: {"x": length / 256} for length in lengths}
        save_results(tmp_path, method, losses, metric="nll", task="text")
    assert [entry.loss for entry in ranked(tmp_path, {"mesa": {512: 20}, "origin": {512: 20}})] == [2.0, 2.0]


def test_holm():
    # 0.01 * 3, 0.02 * 2, then not below the one before.
    assert holm([0.03, None, 0.01, 0.02]) == [pytest.approx(0.04), None, pytest.approx(0.03), pytest.approx(0.04)]
    assert holm([]) == []


def compared(tmp_path, now, before, **options):
    return {
        change.entry.method: change.kind
        for change in changes(ranked(tmp_path / "now", now, **options), ranked(tmp_path / "before", before, **options))
    }


@pytest.mark.parametrize("logged", [True, False])
def test_changes(tmp_path, logged):
    before = {"a": {512: 20, 1024: 20}, "b": {512: 20}, "c": {512: 20, 1024: 2}, "d": {512: 18}, "e": {512: 20}}
    now = {"a": {512: 20, 1024: 3}, "b": {512: 4}, "c": {512: 20, 1024: 20}, "d": {512: 17}, "f": {512: 20}}
    kinds = compared(tmp_path, now, before, logged=logged)
    assert kinds == {"a": "worse", "b": "worse", "c": "better", "d": "same", "f": "new", "e": "gone"}


def test_a_higher_loss_is_a_regression(tmp_path):
    for side, loss in (("now", 2.52), ("before", 2.5)):
        save_results(tmp_path / side, "a", {512: {"x": loss}}, metric="nll", task="text")
    assert compared(tmp_path, {"a": {512: 20}}, {"a": {512: 20}}) == {"a": "worse"}


def test_other_lengths_than_before_are_no_change_of_quality(tmp_path):
    """Lengths that were added neither help nor harm; one that is missing is named."""
    folders = [tmp_path / side for side in ("now", "before")]
    now = ranked(folders[0], {"a": {512: 20, 1024: 20, 2048: 0}, "b": {512: 20, 1024: 20}, "c": {512: 20}})
    before = ranked(folders[1], {"a": {512: 20, 1024: 20}, "b": {512: 20}, "c": {512: 20, 1024: 0}})
    found = {change.entry.method: change for change in changes(now, before)}
    assert (found["a"].kind, found["a"].difference) == ("same", 0)
    assert (found["b"].kind, found["b"].difference) == ("same", 0)
    assert (found["c"].kind, found["c"].reasons) == ("worse", ("not measured any more at 1k",))


def test_changes_are_corrected_for_the_number_of_methods(tmp_path):
    # 6 of 20 samples lost: p = 2/2**6 = 0.03 alone, 0.06 beside another method. T = 512, so no effective length moves.
    assert compared(tmp_path / "one", {"a": {512: 14}}, {"a": {512: 20}}) == {"a": "worse"}
    both = compared(tmp_path / "two", {"a": {512: 14}, "b": {512: 20}}, {"a": {512: 20}, "b": {512: 20}})
    assert both == {"a": "same", "b": "same"}
