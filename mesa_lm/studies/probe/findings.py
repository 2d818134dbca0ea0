"""What a probe found, for a program and for a reader."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mesa_lm.studies.probe.measure import FailureCurve
from mesa_lm.studies.probe.predict import Jump, crossing, predicted_length
from mesa_lm.studies.probe.profile import Profile

# A prediction is right if neither it nor the measurement finds a failure, or if they are at most this factor apart.
AGREEING_FACTOR = 2


class Agreement(NamedTuple):
    """Count methods: with a right prediction, without a failure (what predicting "none" gets right), and measured."""

    right: int
    holding: int
    measured: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Hold the prediction for every method, and what was measured.

    Args:
        model: Name or path of the model.
        text: What was fed: the repeated word, or the file.
        train_length: T in tokens.
        length: Length of the input in tokens.
        jumps: The dimensions that jump at T, highest score first.
        profiles: By method; "origin" first.
        passkey: Measured passkey accuracy, of the methods for which it was.
        tail_nll: Measured loss of the last tokens, of the methods for which it was.
    """

    model: str
    text: str
    train_length: int
    length: int
    jumps: list[Jump]
    profiles: dict[str, Profile]
    passkey: dict[str, FailureCurve]
    tail_nll: dict[str, FailureCurve]

    @property
    def measured(self) -> dict[str, dict[str, FailureCurve]]:
        """The measured curves by what was measured, then by method."""
        return {"passkey": self.passkey, "tail_nll": self.tail_nll}

    def crossings(self, method: str) -> list[int | None]:
        """Return where a method takes each dimension past its threshold."""
        return [crossing(self.profiles[method], jump) for jump in self.jumps]

    def predicted(self, method: str) -> int | None:
        """Return a method's predicted failure length in tokens, None if it does not fail up to the end."""
        return predicted_length(self.crossings(method))

    def agreement(self, curves: Mapping[str, FailureCurve]) -> Agreement:
        """Count the measured methods for which the prediction is right."""
        return Agreement(
            right=sum(_agree(self.predicted(name), curve.failed_at) for name, curve in curves.items()),
            holding=sum(curve.failed_at is None for curve in curves.values()),
            measured=len(curves),
        )

    def as_json(self) -> dict[str, Any]:
        """Return everything but the profiles; lengths and positions are tokens, None is null."""
        methods: dict[str, Any] = {}
        for name in self.profiles:
            methods[name] = {"predicted": self.predicted(name), "crossings": self.crossings(name)}
            for what, curves in self.measured.items():
                methods[name][what] = asdict(curves[name]) if name in curves else None
        return {
            "model": self.model,
            "text": self.text,
            "train_length": self.train_length,
            "length": self.length,
            "layers": self.profiles["origin"].layers,
            "dimensions": [asdict(jump) | {"threshold": jump.threshold} for jump in self.jumps],
            "methods": methods,
            "agreement": {what: self.agreement(curves)._asdict() for what, curves in self.measured.items() if curves},
        }


def _agree(predicted: int | None, measured: int | None) -> bool:
    if predicted is None or measured is None:
        return predicted is measured
    return max(predicted, measured) <= AGREEING_FACTOR * min(predicted, measured)


def print_findings(findings: Findings) -> None:
    """Print the dimensions, the failure lengths and how often prediction and measurement agree."""
    console = Console()
    console.print(
        Text(f"{findings.model}, T = {findings.train_length}; {findings.text}, {findings.length} tokens", style="bold")
    )
    dimensions = Table("layer", "dimension", "score", "before T", "threshold", "after T")
    for jump in findings.jumps:
        numbers = [f"{number:.3f}" for number in (jump.score, jump.below, jump.threshold, jump.above)]
        dimensions.add_row(str(jump.layer), str(jump.dimension), *numbers)
    console.print(dimensions)
    lengths = Table("method", "dimensions past threshold", "predicted failure", "passkey fails", "tail NLL fails")
    for name in findings.profiles:
        crossed = sum(position is not None for position in findings.crossings(name))
        failures = [
            _shown(curves[name].failed_at) if name in curves else "not measured"
            for curves in findings.measured.values()
        ]
        lengths.add_row(name, f"{crossed} of {len(findings.jumps)}", _shown(findings.predicted(name)), *failures)
    console.print(lengths)
    for what, curves in findings.measured.items():
        if curves:
            right, holding, measured = findings.agreement(curves)
            console.print(
                f"{what}: the prediction is right for {right} of {measured} methods (both none, or within a factor of "
                f"{AGREEING_FACTOR}); predicting none for all would be for {holding}",
                soft_wrap=True,
            )


def _shown(length: int | None) -> str:
    return "none" if length is None else str(length)
