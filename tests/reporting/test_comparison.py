"""Paired comparison of two methods on the same samples."""

import json
import math

import pytest
from helpers import save_results
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mesa_lm.cli.main import app
from mesa_lm.errors import UsageError
from mesa_lm.reporting.comparison import compare, paired, side

LENGTHS = (512, 1024)


def save(folder, method, scores, **options):
    """Results of one method, with the same samples at every length."""
    return save_results(folder, method, dict.fromkeys(LENGTHS, scores), **options)


def test_scores_of_0_and_1_by_hand(tmp_path):
    first = {str(i): float(i < 6) for i in range(20)}  # 6 right
    second = {str(i): float(i < 4 or i >= 11) for i in range(20)}  # 4 of them, and 9 others
    rows = compare(side(str(save(tmp_path / "a", "mesa", first))), side(str(save(tmp_path / "b", "rerope", second))))

    assert [row.length for row in rows] == list(LENGTHS)
    row = rows[0]
    assert (row.first, row.second, row.samples, row.unmatched, row.test) == (0.3, 0.65, 20, 0, "McNemar")
    # 9 won, 2 lost: two-sided binomial of at most 2 in 11
    assert row.p_value == pytest.approx(2 * (1 + 11 + 55) / 2**11)
    half = 1.959964 * math.sqrt(9.5 + 2.5 - 7**2 / 22) / 22
    assert row.difference == pytest.approx((7 / 22 - half, 7 / 22 + half))


def test_other_scores_by_bootstrap():
    first = {str(i): 0.1 * (i % 7) for i in range(60)}
    better = {key: score + 0.3 + 0.1 * (int(key) % 3) for key, score in first.items()}
    interval, p_value, test = paired(first, better)
    assert test == "paired bootstrap" and p_value < 0.001
    # differences of 0.3, 0.4 and 0.5 in equal parts: standard error 0.0816 / sqrt(60)
    assert interval == pytest.approx((0.4 - 1.96 * 0.01054, 0.4 + 1.96 * 0.01054), abs=2e-3)
    same = paired(first, first)
    assert same == ((0.0, 0.0), 1.0, "paired bootstrap")


@given(st.lists(st.tuples(st.sampled_from((0.0, 1.0)), st.sampled_from((0.0, 1.0))), min_size=1, max_size=40))
def test_the_order_of_the_methods_does_not_matter(pairs):
    first, second = ({str(i): pair[side] for i, pair in enumerate(pairs)} for side in (0, 1))
    there, back = paired(first, second), paired(second, first)
    assert there[1] == pytest.approx(back[1]) and 0 <= there[1] <= 1
    assert there[0] == pytest.approx((-back[0].high, -back[0].low))
    assert there[0].low < there[0].high


def test_samples_that_only_one_has_are_left_out(tmp_path):
    first = {"a": 1.0, "b": 0.0, "c": 1.0}
    save(tmp_path, "mesa", first)
    save(tmp_path, "rerope", {"b": 1.0, "c": 1.0, "d": 0.0})
    row = compare(side(f"{tmp_path}::mesa"), side(f"{tmp_path}::rerope"))[0]
    assert (row.samples, row.unmatched, row.first, row.second) == (2, 2, 0.5, 1.0)


def test_command(tmp_path):
    save(tmp_path, "mesa", {str(i): 1.0 for i in range(9)})
    save(tmp_path, "rerope", {str(i): float(i > 6) for i in range(9)})
    arguments = ["compare", f"{tmp_path}::mesa", f"{tmp_path}::rerope"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0 and "keys, acc (McNemar)" in shown.output and "A: mesa of org/base" in shown.output
    rows = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    assert [row["p_value"] for row in rows] == [pytest.approx(2 / 2**7)] * 2


def test_what_cannot_be_compared_is_refused(tmp_path, caplog):
    mesa = save(tmp_path / "a", "mesa", {"a": 1.0, "b": 0.0})
    save(tmp_path / "a", "rerope", {"a": 1.0, "b": 0.0})
    unlogged = save(tmp_path / "b", "origin", {"a": 1.0, "b": 0.0}, logged=False)
    others = save(tmp_path / "c", "origin", {"x": 1.0, "y": 0.0})
    losses = save(tmp_path / "d", "origin", {"a": 1.5, "b": 2.5}, metric="nll")
    damaged = save(tmp_path / "e", "origin", {"a": 1.0, "b": 0.0})
    (tmp_path / "e" / "samples_keys_512_keys_origin.jsonl").write_text('{"doc_id": 0, ')
    short = save(tmp_path / "f", "origin", {"a": 1.0, "b": 0.0})
    (tmp_path / "f" / "samples_keys_512_keys_origin.jsonl").write_text("")
    for argument, message in (
        (str(tmp_path / "a"), r"one model and method expected, found mesa of org/base, rerope of org/base; choose"),
        (f"{tmp_path / 'a'}::mesaa", r"unknown method 'mesaa'; did you mean 'mesa'"),
        (str(tmp_path / "nowhere"), "no such file"),
    ):
        with pytest.raises(UsageError, match=message):
            side(argument)
    for other, message in (
        (unlogged, "samples_keys_512_keys_origin.jsonl: no such file; evaluate with --log_samples"),
        (others, "have no sample in common; they were evaluated on different documents"),
        (losses, "the first has acc of keys_512, acc of keys_1024, the second nll of keys_512, nll of keys_1024, none"),
        (damaged, "samples_keys_512_keys_origin.jsonl, line 1: not readable as JSON"),
        (short, "2 samples expected for acc, found 0"),
    ):
        with pytest.raises(UsageError, match=message):
            compare(side(str(mesa)), side(str(other)))


def test_metrics_without_samples_are_left_out_with_a_warning(tmp_path, caplog):
    both = [save(tmp_path / method, method, {"a": 1.0, "b": 0.0}) for method in ("mesa", "rerope")]
    (tmp_path / "mesa" / "samples_keys_512_keys_mesa.jsonl").unlink()
    rows = compare(*(side(str(path)) for path in both))
    assert [row.length for row in rows] == [1024]
    assert "acc of keys_512 is left out: not both were evaluated with --log_samples" in caplog.text
