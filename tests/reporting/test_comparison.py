"""Paired comparison of two methods on the same samples."""

import json

import pytest
from command_line import run
from made_results import save_results

from mesa_lm.errors import UsageError
from mesa_lm.reporting.comparison import compare_methods, read_side

LENGTHS = (512, 1024)


def save(folder, method, scores, **options):
    """Results of one method, with the same samples at every length."""
    return save_results(folder, method, dict.fromkeys(LENGTHS, scores), **options)


def compared(*sides):
    return compare_methods(*(read_side(str(side)) for side in sides))


def test_every_length_is_compared_on_its_samples(tmp_path):
    first = {str(i): float(i < 6) for i in range(20)}  # 6 right
    second = {str(i): float(i < 4 or i >= 11) for i in range(20)}  # 4 of them, and 9 others
    rows = compared(save(tmp_path / "a", "mesa", first), save(tmp_path / "b", "rerope", second))

    assert [row.length for row in rows] == list(LENGTHS)
    row = rows[0]
    assert (row.task, row.metric, row.higher_is_better) == ("keys", "acc", True)
    assert (row.first, row.second, row.samples, row.unmatched, row.test) == (0.3, 0.65, 20, 0, "McNemar")
    assert row.p_value == pytest.approx(2 * (1 + 11 + 55) / 2**11)
    assert row.difference.low < 7 / 22 < row.difference.high


def test_samples_that_only_one_has_are_left_out(tmp_path):
    save(tmp_path, "mesa", {"a": 1.0, "b": 0.0, "c": 1.0})
    save(tmp_path, "rerope", {"b": 1.0, "c": 1.0, "d": 0.0})
    row = compared(f"{tmp_path}::mesa", f"{tmp_path}::rerope")[0]
    assert (row.samples, row.unmatched, row.first, row.second) == (2, 2, 0.5, 1.0)


def test_command(tmp_path):
    save(tmp_path, "mesa", {str(i): 1.0 for i in range(9)})
    save(tmp_path, "rerope", {str(i): float(i > 6) for i in range(9)})
    arguments = ["compare", f"{tmp_path}::mesa", f"{tmp_path}::rerope"]
    shown = run(*arguments)
    assert shown.exit_code == 0 and "keys, acc (McNemar)" in shown.output
    assert shown.output.endswith("A: mesa of org/base   B: rerope of org/base\n")
    rows = json.loads(run(*arguments, "--json").output)
    assert [row["p_value"] for row in rows] == [pytest.approx(2 / 2**7)] * 2


def test_one_sample_has_no_interval(tmp_path):
    for method, loss in (("mesa", 2.5), ("rerope", 3.5)):
        save(tmp_path, method, {"a": loss}, metric="nll")
    arguments = ["compare", f"{tmp_path}::mesa", f"{tmp_path}::rerope"]
    assert "keys, nll (sign flips)" in run(*arguments).output
    rows = json.loads(run(*arguments, "--json").output)
    assert [(row["difference"], row["p_value"]) for row in rows] == [(None, 1.0)] * 2


def test_what_cannot_be_compared_is_refused(tmp_path):
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
        (tmp_path / "a", r"one model and method expected, found mesa of org/base, rerope of org/base; choose"),
        (f"{tmp_path / 'a'}::mesaa", r"unknown method 'mesaa'; did you mean 'mesa'"),
        (tmp_path / "nowhere", "no such file"),
    ):
        with pytest.raises(UsageError, match=message):
            read_side(str(argument))
    texts = save(tmp_path / "g", "origin", {"a": 1.0, "b": 0.0})
    samples = tmp_path / "g" / "samples_keys_512_keys_origin.jsonl"
    samples.write_text(samples.read_text().replace('"acc": 0.0', '"acc": ["x", "y"]'))
    for other, message in (
        (texts, r"keys_origin.jsonl, line 2: acc of a sample must be a number, found \['x', 'y'\]"),
        (unlogged, "samples_keys_512_keys_origin.jsonl: no such file; evaluate with --log_samples"),
        (others, "have no sample in common; they were evaluated on different documents"),
        (losses, "the first has acc of keys_512, acc of keys_1k, the second nll of keys_512, nll of keys_1k, none"),
        (damaged, "samples_keys_512_keys_origin.jsonl, line 1: not readable as JSON"),
        (short, "2 samples expected for acc, found 0"),
    ):
        with pytest.raises(UsageError, match=message):
            compared(mesa, other)


def test_metrics_without_samples_are_left_out_with_a_warning(tmp_path, caplog):
    both = [save(tmp_path / method, method, {"a": 1.0, "b": 0.0}) for method in ("mesa", "rerope")]
    (tmp_path / "mesa" / "samples_keys_512_keys_mesa.jsonl").unlink()
    assert [row.length for row in compared(*both)] == [1024]
    assert "acc of keys_512 is left out: not both were evaluated with --log_samples" in caplog.text
