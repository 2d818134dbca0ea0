"""What a method costs within the training length, where the untouched model works: the change against `origin`."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from mesa_lm.reporting.lm_eval_files import Measurement
from mesa_lm.reporting.samples import Scores, common_p_value
from mesa_lm.reporting.statistics import Interval, paired_test


class Price(NamedTuple):
    """Hold how a metric changes within the training length.

    Attributes:
        difference: Mean over the lengths of the method's values - those of `origin`.
        interval: Its 95% interval; None where samples were not logged, or are too few for one.
        p_value: Probability of such a difference by chance; None where samples were not logged.
        lengths: Over which lengths, those up to the training length that both have.
    """

    difference: float
    interval: Interval | None
    p_value: float | None
    lengths: tuple[int, ...]


def price(
    own: Sequence[Measurement],
    own_scores: Mapping[str, Scores],
    origin: Sequence[Measurement],
    origin_scores: Mapping[str, Scores],
) -> Price | None:
    """Return what a method costs within the training length, sample by sample where samples were logged.

    The bounds are the means of those of each length: an interval that holds however the lengths, which may share their
    documents, depend on one another.

    Args:
        own: The method's rows of the metric.
        own_scores: What its samples contribute, by the name of the task.
        origin: The rows of `origin`, of the same model.
        origin_scores: What its samples contribute.

    Returns:
        The price; None where the training length is unknown, or the two have no length up to it in common.
    """
    untouched = {(row.name, row.length): row.value for row in origin}
    within = [row for row in own if row.train_length and row.length <= row.train_length]
    shared = [row for row in within if (row.name, row.length) in untouched]
    if not shared:
        return None
    names = [row.name for row in shared]
    sides = [{name: scores.get(name) for name in names} for scores in (own_scores, origin_scores)]
    found = [_interval(*(side[name] for side in sides)) for name in names]
    known = [interval for interval in found if interval is not None]
    return Price(
        difference=float(np.mean([row.value - untouched[row.name, row.length] for row in shared])),
        interval=Interval(*map(fmean, zip(*known, strict=True))) if len(known) == len(found) else None,
        p_value=common_p_value(*sides),
        lengths=tuple(row.length for row in shared),
    )


def _interval(own: Scores | None, origin: Scores | None) -> Interval | None:
    if own is None or origin is None:
        return None
    common = own.common(origin)
    if not common:
        return None
    return paired_test(origin.of(common), own.of(common), own.value).difference
