"""The configuration of a sweep: which models, methods, tasks and lengths, and on which workers."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mesa_lm.errors import UsageError, unknown_name
from mesa_lm.methods.registry import make_method

VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(_Section):
    """A model, as `--model_args` of mesa-hf describe it; without `pretrained` the demo model."""

    pretrained: str | None = Field(None, description="folder or name on the hub; none: the demo model")
    revision: str = Field("main", description="branch, tag or commit on the hub")
    dtype: str = Field("auto", description="auto, float32, bfloat16 or float16")
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    args: dict[str, Any] = Field({}, description="other arguments of mesa-hf, such as parallelize")

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of mesa-hf; defaults are left out, as a user of lm_eval would."""
        named = self.model_dump(exclude={"args"}, exclude_defaults=True)
        return {**named, **self.args}

    @property
    def name(self) -> str:
        """The model's name, "demo" for the one that ships."""
        return self.pretrained or "demo"


class MethodChoice(_Section):
    """A method and its parameters."""

    model_config = ConfigDict(extra="allow", frozen=True)

    method: str

    @model_validator(mode="after")
    def _known(self) -> MethodChoice:
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


class Task(_Section):
    """A task or group of lm-eval."""

    task: str
    metadata: dict[str, Any] = Field({}, description="options of the task, as for `lm_eval --metadata`")
    limit: Annotated[int, Field(gt=0)] | None = Field(None, description="first samples of each task only")
    num_fewshot: Annotated[int, Field(ge=0)] | None = Field(None, description="as for lm_eval")


class Workers(_Section):
    """What evaluates."""

    count: Annotated[int, Field(gt=0)] | Literal["auto"] = Field("auto", description="auto: as many as fit the cluster")
    gpus: Annotated[float, Field(ge=0)] = Field(0.0, description="of each worker; a fraction shares one")
    cpus: Annotated[float, Field(gt=0)] = Field(1.0, description="of each worker")
    threads: Annotated[int, Field(gt=0)] = Field(1, description="of torch in each worker")

    @field_validator("gpus")
    @classmethod
    def _whole_or_fraction(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("must be a whole number above 1, as Ray has it")
        return gpus


class Tracking(_Section):
    """Where results are logged to Weights & Biases."""

    project: str
    entity: str | None = None
    mode: Literal["online", "offline", "disabled"] | None = None
    tags: tuple[str, ...] = ()


class Sweep(_Section):
    """Everything that a sweep evaluates: models x methods x tasks x lengths."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = Field(description="of the sweep, and its group in W&B")
    out: Path = Field(description="folder of everything that is written")
    models: Annotated[tuple[Model, ...], Field(min_length=1)] = (Model(),)
    methods: Annotated[tuple[MethodChoice, ...], Field(min_length=1)]
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]
    include_path: Path | None = Field(None, description="folder of tasks of your own, as for lm_eval")
    lengths: tuple[Annotated[int, Field(gt=0)], ...] = Field((), description="tokens; none: those of the tasks")
    batch_size: Annotated[int, Field(gt=0)] = 1
    seed: int = Field(0, description="of Python; lm-eval's defaults seed the rest")
    shard_tokens: Annotated[int, Field(gt=0)] = Field(2_000_000, description="most tokens of a shard")
    max_attempts: Annotated[int, Field(gt=0)] = Field(3, description="of a shard, in one run of the sweep")
    longer_after_oom: bool = Field(False, description="try longer inputs where shorter ones ran out of memory")
    workers: Workers = Workers()
    wandb: Tracking | None = None

    @field_validator("methods", mode="before")
    @classmethod
    def _names_are_methods(cls, methods: Any) -> Any:
        named = [{"method": entry} if isinstance(entry, str) else entry for entry in _listed(methods)]
        return tuple(named)

    @field_validator("tasks", mode="before")
    @classmethod
    def _names_are_tasks(cls, tasks: Any) -> Any:
        return tuple({"task": entry} if isinstance(entry, str) else entry for entry in _listed(tasks))

    def metadata(self, task: Task) -> dict[str, Any]:
        """Options of a task, with the sweep's lengths."""
        return {**({"lengths": list(self.lengths)} if self.lengths else {}), **task.metadata}


def load(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep's configuration.

    Args:
        path: A YAML file. `${NAME}` in a text stands for the environment variable, `${NAME:-text}` for the
            text where it is not set.
        overrides: Settings such as `workers.count=2` or `lengths=[512, 1024]` that replace those of the file.

    Raises:
        UsageError: The file cannot be read, or a setting is unknown or wrong; all wrong ones are named.
        MethodError: A method or one of its parameters is unknown or wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: a sweep must be a mapping of settings, found {type(content).__name__}")
    for override in overrides:
        _set(content, override)
    try:
        return Sweep.model_validate(_substituted(content))
    except ValidationError as error:
        # A list whose entries are all wrong is also reported as empty.
        wrong = [one for one in error.errors() if not (one["type"] == "too_short" and one["input"])]
        raise UsageError("\n".join([f"{path}:", *map(_explained, wrong)])) from error


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _set(content: dict[str, Any], override: str) -> None:
    """Apply `a.b.c=value`; numbers in the path are places in a list."""
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise UsageError(f"--set needs name=value, found {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {name}: not readable as YAML: {text!r}") from error
    *parents, last = name.split(".")
    place: Any = content
    for parent in parents:
        if isinstance(place, list) and parent.isdecimal() and int(parent) < len(place):
            place = place[int(parent)]
        elif isinstance(place, dict):
            place = place.setdefault(parent, {})
        else:
            raise UsageError(f"--set {name}: there is no {parent!r} to set something in")
    if isinstance(place, list) and last.isdecimal() and int(last) < len(place):
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise UsageError(f"--set {name}: there is no {last!r} to set")


def _substituted(value: Any) -> Any:
    """Replace environment variables in every text."""
    if isinstance(value, dict):
        return {key: _substituted(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_substituted(part) for part in value]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        found = os.environ.get(match[1]) or match[2]  # without `:-`, an empty one is empty
        if found is None and match[1] not in os.environ:
            raise UsageError(f"{value!r}: the environment variable {match[1]} is not set")
        return found or ""

    if "${" in VARIABLE.sub("", value):
        raise UsageError(f"{value!r}: environment variables are written ${{NAME}} or ${{NAME:-default}}")
    return VARIABLE.sub(variable, value)


def _explained(error: Any) -> str:
    """Say what is wrong with one setting."""
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section: Any = Sweep
        for part in error["loc"][:-1]:
            if isinstance(part, str) and part in section.model_fields:
                section = SECTIONS.get(part, section)
        return f"  {unknown_name('setting', place, _prefixed(error['loc'], section))}"
    if error["type"] == "missing":
        name = str(error["loc"][-1])
        near = get_close_matches(name, [str(key) for key in error["input"]], n=1)
        return f"  {place} is missing" + (f"; did you mean {name!r} where there is {near[0]!r}?" if near else "")
    return f"  {place}: {error['msg'].removeprefix('Value error, ')}, found {error['input']!r}"


SECTIONS: dict[str, type[_Section]] = {
    "models": Model,
    "methods": MethodChoice,
    "tasks": Task,
    "workers": Workers,
    "wandb": Tracking,
}


def _prefixed(location: Sequence[Any], section: type[_Section]) -> list[str]:
    prefix = "".join(f"{part}." for part in location[:-1])
    return [f"{prefix}{name}" for name in section.model_fields]
