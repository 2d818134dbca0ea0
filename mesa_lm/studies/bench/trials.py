"""What a benchmark is to measure, and what it has measured."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mesa_lm.methods.base import Method
from mesa_lm.studies.bench.floor import Floor
from mesa_lm.studies.bench.kernel_calls import CountedRun
from mesa_lm.studies.bench.timing import STOCK_NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes at the peak; their sum is the peak, without interpreter and libraries.

    Attributes:
        weights: Parameters and buffers.
        kv: Keys and values of the tokens in the cache.
        rest: Everything else: activations, room in the cache for more tokens, what the allocator wastes.
    """

    weights: int
    kv: int
    rest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure.

    Attributes:
        model: Folder or name on the hub; None: the shape.
        shape: One of `shapes.SHAPES`.
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
        calls: Count kernel calls, in the place of measuring anything.
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
    calls: bool
    limit_bytes: int | None

    @property
    def source(self) -> str:
        """The model's path or the shape's name."""
        return self.model or self.shape


@dataclass(slots=True, kw_only=True)
class Trial:
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
        calls: Kernel calls; None if not counted.
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
    calls: CountedRun | None = None
    oom: bool = False

    @property
    def name(self) -> str:
        """The method's name."""
        return STOCK_NAME if self.method is None else self.method.name

    @property
    def label(self) -> str:
        """The method's name with the parameters that the user set."""
        given = ", ".join(f"{key}={value}" for key, value in sorted(self.options.items()))
        return f"{self.name} ({given})" if given else self.name
