"""Paired comparison of two methods on the same samples."""

import json

import pytest
from command_line import run
from lm_eval.api.metrics import mean
from lm_eval.api.registry import AGGREGATION_REGISTRY, get_aggregation, get_metric_aggregation
from made_results import save_results

from mesa_lm.errors import UsageError
from mesa_lm.reporting.aggregations import AGGREGATIONS, DEFAULTS
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
    assert shown.exit_code == 0 and "keys, acc, higher is better (McNemar)" in shown.output
    assert shown.output.endswith("A: mesa of org/base   B: rerope of org/base\n")
    rows = json.loads(run(*arguments, "--json").output)
    assert [row["p_value"] for row in rows] == [pytest.approx(2 / 2**7)] * 2


def test_one_sample_has_no_interval(tmp_path):
    for method, loss in (("mesa", 2.5), ("rerope", 3.5)):
        save(tmp_path, method, {"a": loss}, metric="nll")
    arguments = ["compare", f"{tmp_path}::mesa", f"{tmp_path}::rerope"]
    assert "keys, nll, lower is better (sign flips)" in run(*arguments).output
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
        (tmp_path / "a", r"one method expected, found mesa, rerope; choose with"),
        (f"{tmp_path / 'a'}::mesaa", r"unknown method 'mesaa'; did you mean 'mesa'"),
        (tmp_path / "nowhere", "no such file"),
    ):
        with pytest.raises(UsageError, match=message):
            read_side(str(argument))
    for other, message in (
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


WEIGHTED = {"a": [-30.5, 11], "b": [-7.25, 3], "c": [-100.0, 40], "d": [-1.0, 7], "e": [-22.0, 5], "f": [-9.0, 2]}
ANSWERS = {"a": [1, 1], "b": [0, 1], "c": [1, 0], "d": [0, 0], "e": [1, 1], "f": [0, 0], "g": [1, 1]}
NUMBERS = {"a": -13.5, "b": -24.75, "c": -30.0, "d": -11.25, "e": -18.0, "f": -9.5}
PROBABILITIES = {"a": [0, [0.7, 0.2, 0.1]], "b": [2, [0.5, 0.25, 0.25]], "c": [1, [0.1, 0.8, 0.1]]}
SHARES = {"a": 0.25, "b": 1.0, "c": 0.5, "d": 0.75, "e": 0.0, "f": 0.125}


def aggregated(folder, method, scores, metric, declared):
    """Results of a metric that lm-eval makes by its own function of what is logged for its samples."""
    made_by = get_aggregation(declared) if declared else get_metric_aggregation(metric)
    folder = save_results(folder, method, {512: dict.fromkeys(scores, 0.0)}, metric=metric).parent
    (path,) = folder.glob(f"results_*_{method}.json")
    content = json.loads(path.read_text())
    content["results"]["keys_512"][f"{metric},none"] = float(made_by(list(scores.values())))
    content["configs"]["keys_512"]["metric_list"] = [
        {"metric": metric} | ({"aggregation": declared} if declared else {})
    ]
    content["higher_is_better"]["keys_512"][metric] = metric in ("acc", "f1", "mcc")
    path.write_text(json.dumps(content))
    samples = next(folder.glob(f"samples_*_{method}.jsonl"))
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    samples.write_text("\n".join(json.dumps(line | {metric: scores[line["doc_hash"]]}) for line in lines))
    return path


@pytest.mark.parametrize(
    ("metric", "declared", "scores"),
    [
        ("acc", "mean", SHARES),
        ("nll", "mean", {key: -value for key, value in NUMBERS.items()}),
        ("perplexity", None, NUMBERS),
        ("word_perplexity", "perplexity", NUMBERS),
        ("word_perplexity", None, WEIGHTED),
        ("byte_perplexity", None, WEIGHTED),
        ("bits_per_byte", None, WEIGHTED),
        ("bits_per_byte", "mean", SHARES),
        ("f1", None, ANSWERS),
        ("f1", "mean", SHARES),
        ("mcc", None, ANSWERS),
        ("brier_score", None, PROBABILITIES),
    ],
)
def test_a_metric_is_compared_on_what_lm_eval_makes_of_its_samples(tmp_path, metric, declared, scores):
    """The samples of one side are those of the other, each given to the next document."""
    moved = dict(zip(scores, [*list(scores.values())[1:], next(iter(scores.values()))], strict=True))
    worse = moved | {"a": scores["b"]}
    first = aggregated(tmp_path / "a", "mesa", scores, metric, declared)
    second = aggregated(tmp_path / "b", "rerope", worse, metric, declared)

    (row,) = compared(first, second)

    made_by = get_aggregation(declared) if declared else get_metric_aggregation(metric)
    assert (row.first, row.second) == pytest.approx([made_by(list(side.values())) for side in (scores, worse)])
    differ = sum(scores[key] != worse[key] for key in scores)
    assert 2 / 2**differ <= row.p_value <= 1
    # Both sides the other way round: the same difference, of the other sign.
    (back,) = compared(second, first)
    assert back.p_value == pytest.approx(row.p_value)


def test_a_perplexity_is_compared_in_its_own_direction(tmp_path):
    """Samples carry log-likelihoods, where more is better; the metric is a perplexity, where less is."""
    first = aggregated(tmp_path / "a", "mesa", NUMBERS, "word_perplexity", "perplexity")
    worse = {key: value - 1 for key, value in NUMBERS.items()}
    second = aggregated(tmp_path / "b", "rerope", worse, "word_perplexity", "perplexity")

    (row,) = compared(first, second)

    assert 0 < row.first and row.second == pytest.approx(row.first * 2.718281828)
    assert row.higher_is_better is False and row.p_value == pytest.approx(2 / 2**6)
    assert 0 < row.difference.low < row.second - row.first < row.difference.high


@pytest.mark.parametrize("declared", sorted(set(AGGREGATION_REGISTRY) - set(AGGREGATIONS)))
def test_other_aggregations_are_refused_by_name(tmp_path, declared):
    paths = []
    for method in ("mesa", "rerope"):
        paths.append(aggregated(tmp_path / method, method, SHARES, "score", "mean"))
        content = json.loads(paths[-1].read_text())
        content["configs"]["keys_512"]["metric_list"] = [{"metric": "score", "aggregation": declared}]
        paths[-1].write_text(json.dumps(content))
    with pytest.raises(UsageError, match=rf"^score of keys_512 cannot be compared .*: it is made by {declared}"):
        compared(*paths)


def test_a_function_of_a_task_is_refused_by_name(tmp_path):
    paths = []
    for method in ("mesa", "rerope"):
        paths.append(aggregated(tmp_path / method, method, SHARES, "score", "mean"))
        content = json.loads(paths[-1].read_text())
        source = "def best_of(items):\n    return max(items)\n"
        content["configs"]["keys_512"]["metric_list"] = [{"metric": "score", "aggregation": source}]
        paths[-1].write_text(json.dumps(content))
    with pytest.raises(UsageError, match="score of keys_512 cannot be .*: it is made by the task's own best_of"):
        compared(*paths)


def test_samples_that_do_not_make_the_metric_are_refused(tmp_path):
    paths = [aggregated(tmp_path / method, method, SHARES, "acc", "mean") for method in ("mesa", "rerope")]
    paths[1].write_text(paths[1].read_text().replace('"acc,none": 0.4375', '"acc,none": 0.9375'))
    with pytest.raises(UsageError, match=r"acc of keys_512 cannot .* the mean of its samples is 0.4375, and .* 0.9375"):
        compared(*paths)


def test_what_a_metric_is_made_by_is_what_lm_eval_says():
    for metric, aggregation in DEFAULTS.items():
        assert get_metric_aggregation(metric) is get_aggregation(aggregation)
    for metric in ("acc", "acc_norm", "exact_match", "likelihood"):
        assert get_metric_aggregation(metric) is mean


def test_one_metric_that_cannot_be_compared_does_not_stop_the_others(tmp_path, caplog):
    both = [save(tmp_path / method, method, {"a": 1.0, "b": 0.0}) for method in ("mesa", "rerope")]
    samples = tmp_path / "rerope" / "samples_keys_512_keys_rerope.jsonl"
    samples.write_text(samples.read_text().replace('"acc": 0.0', '"acc": ["x", "y"]'))

    assert [row.length for row in compared(*both)] == [1024]
    assert "acc of keys_512 cannot be compared sample by sample: line 2 of" in caplog.text


def with_costs(folder, method, **options):
    """What a sweep writes: costs beside the metrics, without samples."""
    path = save(folder, method, {"a": 1.0, "b": 0.0}, **options)
    costs = {"costs": {"keys_512": {"peak_bytes": 7.0, "sample_s": 0.5}}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sweep": costs}))
    return path


def test_costs_of_a_sweep_are_left_alone(tmp_path):
    first, second = (with_costs(tmp_path / method, method) for method in ("mesa", "rerope"))
    assert [(row.length, row.metric) for row in compared(first, second)] == [(512, "acc"), (1024, "acc")]
    for path in (first, second):
        path.write_text(path.read_text().replace('"acc,none"', '"prefill_s,none"'))
    with pytest.raises(
        UsageError, match="nothing to compare: .* nothing, .* nothing.*; costs are not measured sample by"
    ):
        compared(first, second)


def test_methods_are_compared_on_every_model_that_both_have(tmp_path):
    for model in ("org/base", "org/large"):
        for method in ("mesa", "rerope"):
            with_costs(tmp_path / model / method, method, model=model)
    save(tmp_path / "only", "mesa", {"a": 1.0}, model="org/only")
    rows = compared(f"{tmp_path}::mesa", f"{tmp_path}::rerope")
    assert [(row.model, row.length) for row in rows] == [(m, n) for m in ("org/base", "org/large") for n in LENGTHS]
    shown = run("compare", f"{tmp_path}::mesa", f"{tmp_path}::rerope").output
    assert "org/large: keys, acc" in shown
    assert shown.endswith("A: mesa of org/base, org/large   B: rerope of org/base, org/large\n")
    # One model on each side: two models are compared.
    rows = compared(f"{tmp_path / 'org/base'}::mesa", f"{tmp_path / 'org/large'}::mesa")
    assert [row.p_value for row in rows] == [1, 1]
    with pytest.raises(UsageError, match="no model in common, the first has org/only, the second org/base, org/large"):
        compared(tmp_path / "only", f"{tmp_path}::rerope")


def test_a_task_that_a_model_cannot_do_is_said_to_be_so(tmp_path):
    for method in ("mesa", "rerope"):
        save(tmp_path, method, {"a": 0.0, "b": 0.0})
    shown = run("compare", f"{tmp_path}::mesa", f"{tmp_path}::rerope").output
    assert "org/base cannot do keys within its training length of 512 tokens (acc is 0): longer inputs say" in shown
    save(tmp_path, "mesa", {"a": 1.0, "b": 0.0})
    assert "cannot do" not in run("compare", f"{tmp_path}::mesa", f"{tmp_path}::rerope").output


def test_wrong_names_are_refused_with_the_nearest(tmp_path):
    save(tmp_path, "mesa", {"a": 1.0})
    for options, message in (
        (("--metric", "ac"), "unknown metric 'ac'; did you mean 'acc'"),
        (("--task", "key"), "unknown task 'key'; did you mean 'keys'"),
    ):
        with pytest.raises(UsageError, match=message):
            run("compare", f"{tmp_path}::mesa", f"{tmp_path}::mesa", *options)


def test_a_damaged_file_is_named_and_the_others_are_compared(tmp_path):
    for method in ("mesa", "rerope"):
        save(tmp_path, method, {"a": 1.0, "b": 0.0})
    (tmp_path / "broken.json").write_text("{")
    shown = run("compare", f"{tmp_path}::mesa", f"{tmp_path}::rerope")
    assert shown.exit_code == 1 and "keys, acc" in shown.stdout
    assert shown.stderr.count("broken.json: not readable as JSON") == 1
