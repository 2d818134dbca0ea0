"""How long a sweep will take, from the times that `mesa-lm bench` has measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from lm_eval.models.utils import normalize_gen_kwargs
from scipy.optimize import nnls

from mesa_lm.errors import UsageError
from mesa_lm.pipelines.entry_tasks import load_leaves
from mesa_lm.pipelines.settings import Sweep
from mesa_lm.pipelines.shards import Shard
from mesa_lm.reporting.results import read

# Parameters as models' names say them: Llama-2-7b-chat-hf, pythia-6.9b.
SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)b(?![a-z])")
# By which powers of the length each time grows: a prefill reads all keys for all queries, a decoded token for one.
POWERS = {"prefill_s": (1, 2), "decode_s": (0, 1)}


class Growth(NamedTuple):
    """Hold seconds as a sum of powers of the length, none with a factor below 0."""

    factors: tuple[float, ...]
    powers: tuple[int, ...]

    def at(self, length: int) -> float:
        """Return the seconds at a length."""
        return sum(factor * length**power for factor, power in zip(self.factors, self.powers, strict=True))


class Rates:
    """What a prefill and a decoded token take, by model, method and length.

    Attributes:
        devices: On what was measured.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        """Read results files of `mesa-lm bench`, and fit each method's times; a quadratic method's come out quadratic.

        Raises:
            UsageError: They hold no times, or those of a method at one length alone, which tells no growth.
        """
        found = read(paths)
        times = found.table[found.table.metric.isin(POWERS) & found.table.task.str.endswith("_b1")]
        if times.empty:
            raise UsageError("--rates: no times of batch 1 in these files; `mesa-lm bench` writes them")
        self._growth: dict[tuple[str, str, str], Growth] = {}
        for (model, method, metric), rows in times.groupby(["model", "method", "metric"]):
            if rows.length.nunique() < 2:
                raise UsageError(
                    f"--rates: {metric} of {method} on {model} was measured at one length; growth takes two or more"
                )
            self._growth[str(model), str(method), str(metric)] = _fitted(rows, POWERS[str(metric)])
        files = (found.files[path].content for path in set(times.source))
        self.devices = sorted({str(content.get("bench", {}).get("device", "unknown")) for content in files})

    def seconds(self, model: str, method: str, length: int, new_tokens: int) -> float | None:
        """Return what one sample takes.

        Args:
            model: Name of the model. Where it was not measured, the one nearest in size stands for it, in proportion to
                the parameters that their names say.
            method: With the parameters that are set; where it was not measured so, the method by its name alone.
            length: Tokens of the prompt.
            new_tokens: Tokens to generate.

        Returns:
            The seconds; None where nothing comparable was measured.
        """
        for label in (method, method.partition(" ")[0]):
            measured = {name for name, other, _ in self._growth if other == label}
            near = _nearest(model, measured)
            if near is not None:
                name, scale = near
                prefill, decode = (self._growth[name, label, metric].at(length) for metric in POWERS)
                return scale * (prefill + new_tokens * decode)
        return None


def _fitted(rows: pd.DataFrame, powers: tuple[int, ...]) -> Growth:
    """Fit times to powers of the length, by their relative errors."""
    lengths, seconds = rows.length.to_numpy(float)[:, None], rows.value.to_numpy(float)[:, None]
    factors, _ = nnls(lengths ** np.array(powers) / seconds, np.ones(len(rows)))
    return Growth(tuple(map(float, factors)), powers)


def _nearest(model: str, measured: Iterable[str]) -> tuple[str, float] | None:
    """Return the measured model that stands for one, and by what its times are multiplied."""
    if model in (names := set(measured)):
        return model, 1.0
    own, sizes = _size(model), {name: size for name in names if (size := _size(name))}
    if not own or not sizes:
        return None
    near = min(sorted(sizes), key=lambda name: abs(np.log(sizes[name] / own)))
    return near, own / sizes[near]


def _size(model: str) -> float | None:
    """Return the billions of parameters that a model's name says."""
    said = SIZE.findall(Path(model).name.lower().replace("_", "-"))
    return float(said[-1]) if said else None


def new_tokens(sweep: Sweep, shard: Shard) -> int:
    """Return how many tokens a sample of a shard may generate; answers that end sooner take less."""
    entry = sweep.tasks[shard.task]
    leaf = load_leaves(sweep, sweep.models[shard.model], entry)[shard.leaf]
    if leaf.OUTPUT_TYPE != "generate_until":
        return 0
    return int(normalize_gen_kwargs({**(leaf.config.generation_kwargs or {}), **entry.gen_kwargs})["max_gen_toks"])


def shard_seconds(sweep: Sweep, shards: Sequence[Shard], rates: Rates) -> dict[Shard, float | None]:
    """Return what each shard takes one worker, without loading the model; None where no comparable time is known."""
    found: dict[Shard, float | None] = {}
    for shard in shards:
        samples = shard.stop - shard.start
        model, method = sweep.models[shard.model].name, sweep.methods[shard.method].label
        each = rates.seconds(model, method, shard.cost // samples, new_tokens(sweep, shard))
        found[shard] = None if each is None else samples * each
    return found
