"""Choosing parameters: by one set of samples, reported on another, and how sure it is."""

import json

import command_line
import pytest
from made_results import save

from mesa_lm.errors import UsageError
from mesa_lm.reporting.choosing import choose
from mesa_lm.reporting.results import read


def evaluated(folder, settings, prefix, *, logged=True):
    """Save results of a method's settings, each right on so many of 20 documents at each length."""
    from made_results import save_results

    for setting, right in settings.items():
        scores = {length: {f"{prefix}{i}": float(i < n) for i in range(20)} for length, n in right.items()}
        path = save_results(folder, f"mesa{setting}", scores, logged=logged)
        report = json.loads(path.read_text())
        given = {} if setting == "" else {"first_chunk": setting}
        report["config"]["mesa_lm"] |= {"method": "mesa", "parameters": given}
        report["config"]["model_args"] |= {"method": "mesa", **given}
        save(path, report)
    return folder


@pytest.fixture
def sets(tmp_path):
    one = evaluated(tmp_path / "choice", {"": {512: 20, 1024: 10}, 50: {512: 20, 1024: 19}, 80: {1024: 18}}, "a")
    other = evaluated(tmp_path / "report", {"": {1024: 11}, 50: {1024: 16}, 80: {1024: 17}}, "b")
    return one, other


def chosen(sets, **options):
    (found,) = choose(*(read([folder]) for folder in sets), **options)
    return found


def test_the_best_setting_over_common_lengths_is_chosen_and_reported_on_the_others(sets):
    found = chosen(sets)
    assert (found.method, found.metric, found.lengths) == ("mesa", "acc", (1024,))
    assert [(one.label, one.chosen_by, one.value) for one in found.settings] == [
        ("mesa (first_chunk=50)", 0.95, 0.8),
        ("mesa (first_chunk=80)", 0.9, 0.85),
        ("mesa", 0.5, 0.55),
    ]
    assert found.gain == pytest.approx(0.25)
    # Nine of ten differ where five of twenty do: 2 / 2^5.
    assert found.p_gain == pytest.approx(2 / 2**5)
    # One document differs between the first two: chance alone makes that.
    assert found.p_second == 1.0


def test_support_says_how_often_other_documents_would_choose_the_same(sets):
    support = {one.label: one.support for one in chosen(sets).settings}
    assert sum(support.values()) == pytest.approx(1)
    # Where the one document that tells the first two apart is not drawn, (19/20)^20 = 36 %, they are equal.
    assert support["mesa (first_chunk=50)"] == pytest.approx(1 - 0.3585 / 2, abs=0.03)
    assert support["mesa"] < 0.01


def test_a_loss_is_chosen_downwards(tmp_path):
    from made_results import save_results

    for prefix in ("a", "b"):
        for setting, value in {50: 2.0, 80: 3.0}.items():
            scores = {1024: {f"{prefix}{i}": value for i in range(6)}}
            path = save_results(tmp_path / prefix, f"mesa{setting}", scores, metric="nll")
            report = json.loads(path.read_text())
            report["config"]["mesa_lm"] |= {"method": "mesa", "parameters": {"first_chunk": setting}}
            save(path, report)
    found = chosen((tmp_path / "a", tmp_path / "b"))
    assert [one.label for one in found.settings] == ["mesa (first_chunk=50)", "mesa (first_chunk=80)"]
    assert found.settings[0].support == 1.0 and found.gain is None


@pytest.mark.parametrize("metric", ["tail_nll", "acc"])
def test_what_cannot_be_chosen_is_refused(tmp_path, sets, metric):
    results = [read([folder]) for folder in sets]
    alone = evaluated(tmp_path / "alone", {50: {512: 20}}, "a")
    with pytest.raises(UsageError, match="nothing to choose: no method has several settings"):
        choose(read([alone]), results[1], metric)
    with pytest.raises(UsageError, match="20 of 20 samples to report on are those to choose by"):
        choose(results[0], read([alone]))
    unlogged = evaluated(tmp_path / "unlogged", {50: {512: 20}, 80: {512: 9}}, "c", logged=False)
    with pytest.raises(UsageError, match="choosing needs its samples; evaluate with --log_samples"):
        choose(read([unlogged]), results[1])


def test_the_command_prints_the_choice_and_writes_it(sets, tmp_path):
    shown = command_line.run("leaderboard", sets[1], "--choose", sets[0])
    assert shown.exit_code == 0, shown.output
    assert "chosen: mesa (first_chunk=50), the best in 8" in shown.output
    assert "on the samples to report it is +0.250 against the defaults (p = 0.062)" in shown.output
    path = tmp_path / "choice.json"
    command_line.run("leaderboard", sets[1], "--choose", sets[0], "--by", "acc", "--json", path)
    assert json.loads(path.read_text())[0]["settings"][0]["label"] == "mesa (first_chunk=50)"
    for wrong in (["--by", "acc"], ["--choose", sets[0], "--merge"]):
        with pytest.raises(UsageError, match="--by goes with --choose|--choose goes with --json alone"):
            command_line.run("leaderboard", sets[1], *wrong)
