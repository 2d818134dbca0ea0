"""What counts as a change since an earlier leaderboard."""

import pytest
from made_results import ranked, save_results

from mesa_lm.reporting.changes import changes


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
