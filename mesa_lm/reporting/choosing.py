"""Choose a method's parameters on one set of samples, and report what they are worth on another."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mesa_lm.errors import UsageError
from mesa_lm.reporting.aggregations import Numbers
from mesa_lm.reporting.method_labels import name_of
from mesa_lm.reporting.results import Results, measurements
from mesa_lm.reporting.samples import Scores, common_p_value, logged_scores
from mesa_lm.reporting.statistics import SEED, Interval, mean_interval

METRICS = ("acc", "tail_nll", "nll")  # the first that a task has is chosen by
RESAMPLES = 2_000


class Setting(NamedTuple):
    """Hold one setting of a method.

    Attributes:
        label: The method with the parameters that differ from its defaults.
        chosen_by: The metric on the samples to choose by, its mean over the lengths.
        support: Share of resampled sets of these samples on which this setting is the best.
        value: The metric on the samples to report; None where it was not evaluated on them.
        interval: Its 95% interval; None where a length has none.
    """

    label: str
    chosen_by: float
    support: float
    value: float | None
    interval: Interval | None


class Choice(NamedTuple):
    """Hold what was chosen for a method of a model on a task.

    Attributes:
        model: The model.
        task: The task.
        method: The method without parameters.
        metric: By what was chosen.
        lengths: Over which lengths, those that all settings have.
        settings: The settings, the chosen one first, the others by what they were chosen by.
        p_second: Probability of a difference to the second by chance, on the samples to choose by.
        gain: The metric of the chosen setting - that of the defaults, on the samples to report; None where either was
            not evaluated on them.
        p_gain: Probability of such a difference by chance; None where there is none.
    """

    model: str
    task: str
    method: str
    metric: str
    lengths: tuple[int, ...]
    settings: list[Setting]
    p_second: float | None
    gain: float | None
    p_gain: float | None


class _Measured(NamedTuple):
    """Hold one setting: its rows, and what its samples contribute by the name of the task."""

    points: pd.DataFrame
    scores: Mapping[str, Scores]


def choose(choice: Results, report: Results, metric: str | None = None) -> list[Choice]:
    """Choose among the settings of each method, wherever it has several.

    Args:
        choice: What to choose by.
        report: The same settings, or at least those that may be chosen, on other samples.
        metric: To choose by; None: the first of `METRICS` that a task has.

    Returns:
        What was chosen, by model, task and method.

    Raises:
        UsageError: No method has several settings, samples were not logged, or some are in both sets.
    """
    found = list(_choices(choice, report, metric))
    if not found:
        asked = metric or " or ".join(METRICS)
        raise UsageError(f"nothing to choose: no method has several settings with {asked} at a common length")
    return found


def _choices(choice: Results, report: Results, metric: str | None) -> Iterator[Choice]:
    for (model, task), board in choice.table.groupby(["model", "task"]):
        by = next((name for name in ([metric] if metric else METRICS) if name in set(board.metric)), None)
        scored = board[(board.metric == by) & board.higher_is_better.notna()]
        other = report.table[(report.table.model == model) & (report.table.task == task) & (report.table.metric == by)]
        for method, own in scored.groupby(scored.method.map(name_of)):
            if own.method.nunique() > 1:
                yield _choice(str(method), own, other[other.method.map(name_of) == method])


def _choice(method: str, rows: pd.DataFrame, others: pd.DataFrame) -> Choice:
    """Choose among the settings of one method.

    Args:
        method: Its name.
        rows: The rows of all settings on the samples to choose by.
        others: Those on the samples to report.
    """
    first = rows.iloc[0]
    settings, reported = _measured(rows), _measured(others)
    _refuse_shared(settings, reported)
    lengths = sorted(set.intersection(*(set(one.points.length) for one in settings.values())))
    if not lengths:
        raise UsageError(f"{method} on {first.task}: its settings have no length in common")
    sign = 1.0 if first.higher_is_better else -1.0
    means = {label: _mean(one.points, lengths) for label, one in settings.items()}
    support = _support(settings, lengths, sign)
    order = sorted(settings, key=lambda label: (-sign * means[label], label))
    reported_at = sorted(set.intersection(*(set(one.points.length) for one in reported.values()))) if reported else []
    shown = [Setting(label, means[label], support[label], *_worth(reported.get(label), reported_at)) for label in order]
    default = next((one for one in shown if one.label == method), None)
    gain = p_gain = None
    if default is not None and default is not shown[0] and None not in (default.value, shown[0].value):
        gain = (shown[0].value or 0.0) - (default.value or 0.0)
        p_gain = _p_value(reported[method], reported[order[0]], reported_at)
    return Choice(
        model=first.model,
        task=first.task,
        method=method,
        metric=first.metric,
        lengths=tuple(lengths),
        settings=shown,
        p_second=_p_value(settings[order[0]], settings[order[1]], lengths),
        gain=gain,
        p_gain=p_gain,
    )


def _worth(setting: _Measured | None, lengths: Sequence[int]) -> tuple[float | None, Interval | None]:
    """Return the mean over lengths of a setting and its interval; None where it was not measured."""
    if setting is None or not lengths:
        return None, None
    points = setting.points[setting.points.length.isin(lengths)]
    return _mean(points, lengths), mean_interval(list(measurements(points)))


def _measured(rows: pd.DataFrame) -> dict[str, _Measured]:
    """Return the settings by their labels.

    Raises:
        UsageError: The samples of one were not logged, or their file is damaged.
    """
    found = {}
    for label, points in rows.groupby("method"):
        scores, problems = logged_scores(measurements(points))
        if problems:
            raise UsageError(problems[0])
        for row in measurements(points):
            if row.name not in scores:
                raise UsageError(f"{label} on {row.name}: choosing needs its samples; evaluate with --log_samples")
        found[str(label)] = _Measured(points, scores)
    return found


def _refuse_shared(settings: Mapping[str, _Measured], reported: Mapping[str, _Measured]) -> None:
    """Refuse samples that are in both sets: what was chosen by them looks better on them than it is.

    Raises:
        UsageError: There are some.
    """
    used = {sample for one in settings.values() for scores in one.scores.values() for sample in scores.places}
    shown = {sample for one in reported.values() for scores in one.scores.values() for sample in scores.places}
    if shared := used & shown:
        raise UsageError(
            f"{len(shared)} of {len(shown)} samples to report on are those to choose by; evaluate the two with "
            "different seeds or texts"
        )


def _mean(points: pd.DataFrame, lengths: Sequence[int]) -> float:
    return float(points.value[points.length.isin(lengths)].mean())


def _p_value(first: _Measured, second: _Measured, lengths: Sequence[int]) -> float | None:
    sides = [
        {row.name: one.scores[row.name] for row in measurements(one.points[one.points.length.isin(lengths)])}
        for one in (first, second)
    ]
    return common_p_value(*sides)


def _support(settings: Mapping[str, _Measured], lengths: Sequence[int], sign: float) -> dict[str, float]:
    """Return on which share of resampled documents each setting is the best; equals share it.

    All lengths of a document, and all settings, are drawn together.

    Source: Efron and Tibshirani 1993, An introduction to the bootstrap, chapter 6, for the resampling of whole cases.
    """
    first = next(iter(settings.values()))
    names = [row.name for row in measurements(first.points[first.points.length.isin(lengths)])]
    documents = np.unique(np.concatenate([first.scores[name].documents for name in names]))
    generator = np.random.default_rng(SEED)
    times = generator.multinomial(len(documents), np.full(len(documents), 1 / len(documents)), RESAMPLES).astype(float)
    means = np.stack([_resampled(one.scores, names, documents, times) for one in settings.values()])
    best = np.isclose(sign * means, (sign * means).max(axis=0), rtol=1e-9, atol=1e-12)
    shares = (best / best.sum(axis=0)).mean(axis=1)
    return dict(zip(settings, map(float, shares), strict=True))


def _resampled(
    scores: Mapping[str, Scores], names: Sequence[str], documents: NDArray[np.int64], times: Numbers
) -> Numbers:
    """Return the mean over lengths of a metric for each way to draw documents, (ways,)."""
    found = []
    for name in names:
        one = scores[name]
        parts = pd.DataFrame(one.parts).groupby(one.documents).sum().reindex(documents, fill_value=0.0).to_numpy()
        with np.errstate(invalid="ignore", divide="ignore"):  # a length none of whose documents was drawn
            found.append(one.value(times @ parts))
    means: Numbers = np.nanmean(found, axis=0)
    return means
