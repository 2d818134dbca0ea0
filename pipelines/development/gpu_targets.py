"""Measure shapes of 7B and 8B on a GPU stage by stage, and tell how far each target is.

    python -m mesa_lm.pipelines.development.gpu_targets results/bench/gpu

A stage is one `mesa-lm bench` of one shape at one length, stopped after some minutes. Called again, it goes on with the
stages that have no folder yet. It needs an installation of this package, and downloads nothing.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import typer

from mesa_lm.lengths import parse_length

TWO_BANDS = ("rerope", "leaky_rerope", "self_extend", "lm_infinite", "streaming_llm", "dual_chunk")
STOPPED = "stopped.json"  # lies in the folder of a stage that took too long


class SpeedTarget(NamedTuple):
    """What a method is to reach, at most.

    Attributes:
        method: The method.
        length: Label of the prompt's length.
        what: "prefill" or "decode", against `origin`; "floor" of the prefill; "memory", which is not enough (1) or is.
        most: The largest ratio.
    """

    method: str
    length: str
    what: str
    most: float

    def sentence(self, shape: str) -> str:
        """Say what is asked for."""
        if self.what == "memory":
            return f"{self.method} fits {self.length} tokens of {shape} into memory"
        asked = "x its floor, prefill" if self.what == "floor" else f"x origin, {self.what}"
        return f"{self.method} at {self.length} of {shape}: at most {self.most} {asked}"


def targets(long: str, middle: str, longest: str) -> list[SpeedTarget]:
    """Return the targets; the lengths are labels such as "128k"."""
    return [
        SpeedTarget("mesa", long, "prefill", 0.33),
        SpeedTarget("mesa", long, "floor", 1.3),
        SpeedTarget("mesa", long, "decode", 1.1),
        *(SpeedTarget(name, middle, "prefill", 2.2) for name in TWO_BANDS),
        SpeedTarget("mesa", longest, "memory", 0.0),
    ]


def methods_of(length: int, long: int, middle: int) -> tuple[str, ...]:
    """Return what a stage measures: beyond `long` tokens plain attention would take longer than all else together."""
    if length > long:
        return ("mesa",)
    if length == middle:
        return ("stock", "origin", "mesa", *TWO_BANDS)
    return ("stock", "origin", "mesa") if length < middle else ("origin", "mesa")


def run_stage(folder: Path, arguments: Sequence[str], limit_s: float) -> None:
    """Run `mesa-lm bench` into a folder, unless that was done before; whatever interrupts it leaves no folder.

    Args:
        folder: Where the results of the stage lie.
        arguments: Of the command, but for the folder.
        limit_s: Seconds after which the stage is stopped; that is its result.

    Raises:
        CalledProcessError: The command failed.
    """
    if folder.exists():
        return
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    print(f"{folder}: mesa-lm bench {' '.join(arguments)}", flush=True)
    try:
        subprocess.run(
            [sys.executable, "-m", "mesa_lm", "bench", "--out", part, *arguments], check=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        part.mkdir(parents=True, exist_ok=True)
        (part / STOPPED).write_text(json.dumps({"limit_s": limit_s}) + "\n")
    part.rename(folder)


def measured(folder: Path, target: SpeedTarget) -> float | None:
    """Return how far a method is: a ratio, for memory 0 if it was enough and 1 if not; None: nothing was measured.

    Args:
        folder: Of the stages of a shape.
        target: The target.
    """
    cells = dict(_cells(folder / target.length))
    own, origin = cells.get(target.method), cells.get("origin")
    if own is None:
        return None
    if target.what == "memory":
        return float(own["oom"])
    if target.what == "floor":
        floor: float | None = own.get("floor_ratio")
        return floor
    if origin is None or own["oom"] or origin["oom"]:
        return None
    name = f"{target.what}_s"
    ratios: list[float] = [one / other for one, other in zip(own[name], origin[name], strict=True)]
    return median(ratios)


def _cells(stage: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the methods of a stage with what was measured of each."""
    for path in sorted(stage.rglob("results_*.json")):
        report = json.loads(path.read_text())
        (values,), (cell,) = report["results"].values(), report["bench"]["cells"]
        named = {name.removesuffix(",none"): value for name, value in values.items()}
        yield report["config"]["mesa_lm"]["method"], {**named, **cell}


def gpu_targets(
    out: Annotated[Path, typer.Argument(help="Folder for the results.")],
    shapes: Annotated[
        str, typer.Option(help="Shapes; the targets are those of the last one.")
    ] = "llama-2-7b,llama-3-8b",
    lengths: Annotated[str, typer.Option(help="Lengths in tokens.")] = "4k,8k,16k,32k,64k,128k,256k,512k",
    long: Annotated[str, typer.Option(help="Length at which Mesa is compared.")] = "128k",
    middle: Annotated[str, typer.Option(help="Length at which all methods are.")] = "32k",
    longest: Annotated[str, typer.Option(help="Length that has to fit into memory.")] = "512k",
    device: Annotated[str, typer.Option(help="As of `mesa-lm bench`.")] = "cuda",
    dtype: Annotated[str, typer.Option(help="As of `mesa-lm bench`.")] = "bfloat16",
    limit_s: Annotated[float, typer.Option(help="Seconds after which a stage is stopped.")] = 480,
) -> None:
    """Run the stages that are missing, print a line per target and save them as JSON."""
    counts = {label: parse_length(label) or 0 for label in (*lengths.split(","), long, middle, longest)}
    for shape in shapes.split(","):
        for label in lengths.split(","):
            methods = methods_of(counts[label], counts[long], counts[middle])
            rounds = ["--repeats", "3" if counts[label] <= counts[middle] else "1"]
            chosen = [argument for method in methods for argument in ("--method", method)]
            place = ["--shape", shape, "--lengths", label, "--device", device, "--dtypes", dtype]
            run_stage(out / shape / label, [*place, *rounds, *chosen], limit_s)
    lines = []
    for target in targets(long, middle, longest):
        found = measured(out / shape, target)
        verdict = "not measured" if found is None else "reached" if found <= target.most else "missed"
        lines.append({**target._asdict(), "shape": shape, "found": found, "verdict": verdict})
        print(f"{verdict:12}  {'' if found is None else f'{found:.2f}':>5}  {target.sentence(shape)}")
    (out / "targets.json").write_text(json.dumps(lines, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(gpu_targets)
