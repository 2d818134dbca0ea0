"""What benchmarks and sweeps measure beside quality: one list of costs, with their words and units."""

from typing import NamedTuple

GIB = 2**30
OOM_METRIC = "oom"  # the metric that is 1 where a benchmark ran out of memory


class Cost(NamedTuple):
    """Describe a metric that is better the less of it there is.

    Attributes:
        label: What it is, for an axis.
        unit: The unit to show it in.
        divisor: By what a value is divided for that unit.
        column: Title of its column on the leaderboard; None where it has none.
    """

    label: str
    unit: str
    divisor: int
    column: str | None

    @property
    def axis(self) -> str:
        """The label of an axis."""
        return f"{self.label} ({self.unit})"

    def text(self, value: float) -> str:
        """Write a value, short times in milliseconds."""
        if self.unit == "s" and value < 1:
            return f"{value * 1000:.1f} ms"
        return f"{value / self.divisor:.2f} {self.unit}"


COSTS = {
    "peak_bytes": Cost("peak memory", "GiB", GIB, "peak memory"),
    "decode_s": Cost("time per decoding step", "s", 1, "per token"),
    "prefill_s": Cost("prefill time", "s", 1, "prefill"),
    "sample_s": Cost("time per sample", "s", 1, "per sample"),
    "kv_bytes": Cost("memory of keys and values", "GiB", GIB, None),
}
# Those of the leaderboard, in the order of its columns.
RANKED_COSTS = tuple(name for name, cost in COSTS.items() if cost.column)


def is_cost(metric: str) -> bool:
    """Return whether a metric is a cost or a speed, which say nothing about the quality of answers."""
    return metric in COSTS or metric.endswith(("_per_s", "_gflops", "_calls"))
