"""Carry out a benchmark: every method in turn, round after round, so that a busy machine slows all alike."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers import PreTrainedModel

from mesa_lm.errors import UsageError
from mesa_lm.methods.base import Method
from mesa_lm.methods.origin import Origin
from mesa_lm.models.families import check_supported
from mesa_lm.models.memory import release
from mesa_lm.reporting.results import length_label
from mesa_lm.studies.bench.floor import Floor, measure_floor
from mesa_lm.studies.bench.memory import Memory, Request, cpu_memory, cuda_memory
from mesa_lm.studies.bench.models import load_config, load_model
from mesa_lm.studies.bench.timing import STOCK, method_named, random_prompts, run_once

DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        model: Folder or name on the hub; None: the shape.
        shape: One of `models.SHAPES`.
        methods: Names and parameters of the methods.
        lengths: Tokens of the prompts.
        dtypes: Names of torch dtypes.
        batches: Numbers of prompts.
        repeats: Measured rounds.
        warm_up: Rounds before them.
        steps: Decoded tokens per round.
        device: "cpu" or a CUDA device.
        threads: Of torch.
        memory: Measure memory too.
        limit_bytes: More memory than this counts as out of memory; None: what the machine has. CPU only.
    """

    model: str | None
    shape: str
    methods: Sequence[tuple[str, dict[str, Any]]]
    lengths: Sequence[int]
    dtypes: Sequence[str]
    batches: Sequence[int]
    repeats: int
    warm_up: int
    steps: int
    device: str
    threads: int
    memory: bool
    limit_bytes: int | None

    @property
    def source(self) -> str:
        """The model's path or the shape's name."""
        return self.model or self.shape


@dataclass(slots=True, kw_only=True)
class Cell:
    """What was measured for one method at one dtype, batch and length.

    Attributes:
        method: Bound to the model; None: transformers alone.
        options: Its parameters that the user set.
        dtype: Name of a torch dtype.
        batch: Number of prompts.
        length: Tokens of each.
        prefill_s: Seconds of each measured prefill.
        decode_s: Seconds of a decoding step in each measured round.
        floors: The floor in each measured round, for methods that cut prompts into chunks.
        memory: At the peak; None if not measured.
        oom: It ran out of memory.
    """

    method: Method | None
    options: dict[str, Any]
    dtype: str
    batch: int
    length: int
    prefill_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)
    floors: list[Floor] = field(default_factory=list)
    memory: Memory | None = None
    oom: bool = False

    @property
    def name(self) -> str:
        """The method's name."""
        return STOCK if self.method is None else self.method.name


def run(plan: Plan, progress: Callable[[str], None]) -> list[Cell]:
    """Measure everything of a plan.

    Args:
        plan: What to measure.
        progress: Told what is being done.

    Returns:
        The cells by dtype, batch, length and method.

    Raises:
        MesaError: Something in the plan cannot be run; before any weight is loaded.
    """
    config = load_config(plan.model, plan.shape)
    named = [(method_named(name, options), options) for name, options in plan.methods]
    for method, _ in named:
        if method is not None and not isinstance(method, Origin):
            check_supported(config, method)
    methods = [(None if method is None else method.bind(config), options) for method, options in named]
    _check_device(plan)
    torch.set_num_threads(plan.threads)
    cells: list[Cell] = []
    for dtype in plan.dtypes:
        progress(f"loading {plan.source} in {dtype}")
        model = load_model(plan.model, plan.shape, dtype, plan.device)
        for batch, length in product(plan.batches, plan.lengths):
            group = [
                Cell(method=method, options=options, dtype=dtype, batch=batch, length=length)
                for method, options in methods
            ]
            _measure_group(plan, model, group, progress)
            cells += group
        del model
        release(torch.device(plan.device))
    return cells


def _check_device(plan: Plan) -> None:
    try:
        torch.empty(0, device=plan.device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {plan.device!r} cannot be used: {str(error).splitlines()[0]}") from None
    if plan.memory and plan.device == "cpu" and sys.platform != "linux":
        raise UsageError(f"memory on a CPU is measured on Linux, found {sys.platform}; give --no-memory")
    if plan.memory and plan.device != "cpu" and torch.device(plan.device).type != "cuda":
        raise UsageError(f"memory is measured on cpu and cuda, found device {plan.device!r}; give --no-memory")


def _measure_group(plan: Plan, model: PreTrainedModel, group: list[Cell], progress: Callable[[str], None]) -> None:
    """Measure the methods of one dtype, batch and length: memory first, which tells what fits, then time."""
    where = f"{length_label(group[0].length)}, {group[0].dtype}, batch {group[0].batch}"
    if plan.memory:
        for cell in group:
            progress(f"memory of {cell.name} at {where}")
            cell.memory = _memory(plan, model, cell)
            cell.oom = cell.memory is None
    prompts = random_prompts(model, group[0].batch, group[0].length)
    for number in range(plan.warm_up + plan.repeats):
        for cell in _rotated(group, number):
            if cell.oom:
                continue
            progress(f"round {number + 1} of {plan.warm_up + plan.repeats}: {cell.name} at {where}")
            try:
                taken = run_once(model, cell.method, prompts, plan.steps)
                floor = None if cell.method is None else measure_floor(model, cell.method, cell.batch, cell.length)
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                cell.oom = True
                release(model.device)
                continue
            if number >= plan.warm_up:
                cell.prefill_s.append(taken.prefill_s)
                cell.decode_s.append(taken.decode_s)
                cell.floors += [] if floor is None else [floor]


def _memory(plan: Plan, model: PreTrainedModel, cell: Cell) -> Memory | None:
    if model.device.type == "cuda":
        return cuda_memory(model, cell.method, cell.length, cell.batch)
    return cpu_memory(
        Request(
            model=plan.model,
            shape=plan.shape,
            method=cell.name,
            options=cell.options,
            length=cell.length,
            batch=cell.batch,
            dtype=cell.dtype,
            threads=plan.threads,
            limit_bytes=plan.limit_bytes,
        )
    )


def _rotated(group: list[Cell], number: int) -> Iterator[Cell]:
    """Yield the cells, in every round beginning with another one."""
    first = number % len(group)
    yield from group[first:]
    yield from group[:first]
