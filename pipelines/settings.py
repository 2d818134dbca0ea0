"""The settings of a sweep: which models, methods, tasks and lengths, and on which workers.

`mesa_lm.pipelines.sweep_file` reads them from YAML; docs/pipeline.md describes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from lm_eval.utils import simple_parse_args_string
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PrivateAttr, field_validator, model_validator

from mesa_lm.errors import UsageError
from mesa_lm.harness.generation_settings import check_generation
from mesa_lm.methods.registry import available_methods, make_method, parameter_names

# Of what can be asked for: documents are built before anything runs, and a slip must not fill the memory.
LONGEST = 2**24
MOST_SAMPLES = 100_000
Length = Annotated[int, Field(gt=0, le=LONGEST)]


class Section(BaseModel):
    """A mapping of the file, whose names are all known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelEntry(Section):
    """A model, as `--model_args` of mesa-hf describe it; without `pretrained` the demo model."""

    pretrained: str | None = Field(None, description="folder or name on the hub; none: the demo model")
    revision: str = Field("main", description="branch, tag or commit on the hub")
    dtype: str = Field("auto", description="auto, float32, bfloat16 or float16")
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    args: dict[str, Any] = Field({}, description="other arguments of mesa-hf, such as parallelize")

    @field_validator("args")
    @classmethod
    def _none_of_a_method(cls, args: dict[str, Any]) -> dict[str, Any]:
        # A worker changes the method of its model: they would hold for the first one alone.
        owned = {name for kind in available_methods().values() for name in parameter_names(kind)} | {"method"}
        if wrong := sorted(owned & set(args)):
            raise ValueError(f"{', '.join(wrong)} belongs to a method; give it in the entry of methods")
        return args

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of mesa-hf; defaults are left out, as a user of lm_eval would."""
        named = self.model_dump(exclude={"args"}, exclude_defaults=True)
        return {**named, **self.args}

    @property
    def name(self) -> str:
        """The model's name, "demo" for the one that ships."""
        return self.pretrained or "demo"


class MethodEntry(Section):
    """A method and its parameters."""

    model_config = ConfigDict(extra="allow", frozen=True)

    method: str

    @model_validator(mode="after")
    def _known(self) -> MethodEntry:
        make_method(self.method, **self.parameters)  # raises MethodError, which names what is wrong
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that are set."""
        return dict(self.model_extra or {})

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of mesa-hf."""
        return {"method": self.method, **self.parameters}

    @property
    def label(self) -> str:
        """The method with the parameters that are set."""
        given = ", ".join(f"{name}={value}" for name, value in sorted(self.parameters.items()))
        return f"{self.method} ({given})" if given else self.method


class TaskEntry(Section):
    """A task or group of lm-eval."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_min_length=1)

    task: str
    metadata: dict[str, Any] = Field({}, description="options of the task, as for `lm_eval --metadata`")
    limit: Annotated[int, Field(gt=0)] | None = Field(None, description="first samples of each task only")
    num_fewshot: Annotated[int, Field(ge=0)] | None = Field(None, description="as for lm_eval")
    gen_kwargs: dict[str, Any] = Field({}, description="as for lm_eval: names and values, or 'name=value,name=value'")
    apply_chat_template: bool | str = Field(False, description="as for lm_eval: true, or the name of a template")
    fewshot_as_multiturn: bool | None = Field(None, description="as for lm_eval; none: with a chat template")
    system_instruction: str | None = Field(None, description="as for lm_eval")

    @field_validator("gen_kwargs", mode="before")
    @classmethod
    def _of_generation(cls, gen_kwargs: Any) -> Any:
        if isinstance(gen_kwargs, str):
            gen_kwargs = simple_parse_args_string(gen_kwargs)
        if not isinstance(gen_kwargs, dict):
            raise ValueError("must hold names and values, or be a text such as 'temperature=0.1,top_p=0.9'")
        try:
            check_generation(gen_kwargs)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return gen_kwargs

    @field_validator("apply_chat_template", mode="before")
    @classmethod
    def _template_or_switch(cls, template: Any) -> Any:
        if not isinstance(template, bool | str):
            raise ValueError("must be true, false or the name of a chat template")
        return template

    @model_validator(mode="after")
    def _turns_need_a_template(self) -> TaskEntry:
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise ValueError("fewshot_as_multiturn needs apply_chat_template")
        return self

    @field_validator("metadata")
    @classmethod
    def _bounded(cls, metadata: dict[str, Any]) -> dict[str, Any]:
        samples, lengths = metadata.get("num_samples"), metadata.get("lengths")
        if isinstance(samples, int) and samples > MOST_SAMPLES:
            raise ValueError(f"num_samples must be at most {MOST_SAMPLES}")
        if isinstance(lengths, list) and any(isinstance(length, int) and length > LONGEST for length in lengths):
            raise ValueError(f"lengths must be at most {LONGEST} tokens")
        return metadata

    @property
    def evaluation(self) -> dict[str, Any]:
        """Arguments of lm-eval's `simple_evaluate`, as its command has them."""
        turns = self.fewshot_as_multiturn
        return {
            "num_fewshot": self.num_fewshot,
            "gen_kwargs": self.gen_kwargs,
            "apply_chat_template": self.apply_chat_template,
            "fewshot_as_multiturn": True if turns is None and self.apply_chat_template else turns,
            "system_instruction": self.system_instruction,
        }


class WorkerSettings(Section):
    """What evaluates."""

    count: Annotated[int, Field(gt=0)] | Literal["auto"] = Field("auto", description="auto: as many as fit the cluster")
    gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="of each worker; a fraction shares one"
    )
    cpus: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(1.0, description="of each worker")
    threads: Annotated[int, Field(gt=0)] = Field(1, description="of torch in each worker")
    stall_s: Annotated[FiniteFloat, Field(gt=0)] = Field(
        1800.0, description="without progress, then another worker tries"
    )
    wait_s: Annotated[FiniteFloat, Field(gt=0)] = Field(1800.0, description="for resources, then the sweep ends")

    @field_validator("gpus")
    @classmethod
    def _whole_or_fraction(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("must be a whole number above 1, as Ray has it")
        return gpus


class TrackingSettings(Section):
    """Where results are logged to Weights & Biases."""

    project: str
    entity: str | None = None
    group: str | None = Field(None, description="of the runs; none: the sweep's name, with a dated out the night's")
    mode: Literal["online", "offline", "disabled"] | None = None
    tags: tuple[str, ...] = ()


class Sweep(Section):
    """Everything that a sweep evaluates: models x methods x tasks x lengths."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = Field(description="of the sweep, and its group in W&B")
    out: Path = Field(description="folder of everything that is written")
    models: Annotated[tuple[ModelEntry, ...], Field(min_length=1)] = (ModelEntry(),)
    methods: Annotated[tuple[MethodEntry, ...], Field(min_length=1)]
    tasks: Annotated[tuple[TaskEntry, ...], Field(min_length=1)]
    include_path: Path | None = Field(None, description="folder of tasks of your own, as for lm_eval")
    lengths: tuple[Annotated[int, Field(gt=0, le=LONGEST)], ...] = Field(
        (), description="tokens; none: those of the tasks"
    )
    batch_size: Annotated[int, Field(gt=0)] = 1
    seed: int = Field(0, description="of Python; lm-eval's defaults seed the rest")
    shard_tokens: Annotated[int, Field(gt=0)] = Field(2_000_000, description="most tokens of a shard")
    max_attempts: Annotated[int, Field(gt=0)] = Field(3, description="of a shard, in one run of the sweep")
    longer_after_oom: bool = Field(False, description="try longer inputs where shorter ones ran out of memory")
    workers: WorkerSettings = WorkerSettings()
    keep: Annotated[int, Field(gt=0)] | None = Field(None, description="nights whose folders stay; none: all")
    wandb: TrackingSettings | None = None
    _out_is_dated: bool = PrivateAttr(False)

    @field_validator("out")
    @classmethod
    def _a_folder_of_its_own(cls, out: Path) -> Path:
        if out == Path() or not str(out).isprintable():
            raise ValueError("must be a folder of its own")
        try:
            return out.expanduser()
        except RuntimeError as error:
            raise ValueError("names the home of a user that is not there") from error

    @field_validator("models", "methods", "tasks", "lengths")
    @classmethod
    def _no_two_alike(cls, entries: tuple[Any, ...]) -> tuple[Any, ...]:
        for place, entry in enumerate(entries):
            if entry in entries[:place]:
                raise ValueError(f"entries {entries.index(entry)} and {place} are the same")
        return entries

    @field_validator("methods", mode="before")
    @classmethod
    def _names_are_methods(cls, methods: Any) -> Any:
        return _mappings("method", methods)

    @field_validator("tasks", mode="before")
    @classmethod
    def _names_are_tasks(cls, tasks: Any) -> Any:
        return _mappings("task", tasks)

    @property
    def out_is_dated(self) -> bool:
        """Whether the file's `out` ends in the night that the sweep runs in."""
        return self._out_is_dated

    def metadata(self, task: TaskEntry) -> dict[str, Any]:
        """Options of a task, with the sweep's lengths."""
        return {**({"lengths": list(self.lengths)} if self.lengths else {}), **task.metadata}


def _mappings(key: str, value: Any) -> Any:
    """Return a list of entries, or a single one, with names replaced by mappings of `key` to the name."""
    entries = value if isinstance(value, list | tuple) else [value]
    return tuple({key: entry} if isinstance(entry, str) else entry for entry in entries)
