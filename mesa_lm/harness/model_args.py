"""Check what a user typed in `--model_args` before any weight is loaded."""

import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from mesa_lm.errors import MethodError, ModelError, UsageError, unknown_name
from mesa_lm.harness.task_options import COUNT, OptionRule, is_count
from mesa_lm.methods.base import Method
from mesa_lm.methods.registry import available_methods, make_method, method_class

DEFAULT_DEVICE = "cuda:0"  # of lm-eval's command
_DTYPES = ("float32", "bfloat16", "float16", "float64")
_FLAG = OptionRule(lambda value: isinstance(value, bool), "true or false")
_DTYPE = OptionRule(
    lambda value: isinstance(value, torch.dtype) or str(value).removeprefix("torch.") in _DTYPES,
    f"one of {', '.join(_DTYPES)}",
)
_BATCH = OptionRule(
    lambda value: is_count(value) or bool(re.fullmatch(r"auto(:[1-9][0-9]{0,3})?|[1-9][0-9]{0,8}", str(value))),
    "a whole number of at least 1, 'auto' or 'auto:N'",
)
# What arguments of lm-eval's `hf` may be.
HOST_RULES: Mapping[str, OptionRule] = {
    "batch_size": _BATCH,
    "max_batch_size": COUNT,
    "max_length": COUNT,
    "dtype": OptionRule(lambda value: value == "auto" or _DTYPE.fits(value), f"auto or {_DTYPE.allowed}"),
    "softmax_dtype": _DTYPE,
    "mixed_precision_dtype": _DTYPE,
    "prefix_token_id": OptionRule(lambda value: type(value) is int and value >= 0, "the id of a token"),
    "backend": OptionRule(lambda value: value in ("default", "causal"), "default or causal"),
    "tokenizer": OptionRule(
        lambda value: isinstance(value, str | PreTrainedTokenizerBase), "a folder, a name on the hub or a tokenizer"
    ),
    "chat_template_args": OptionRule(lambda value: isinstance(value, dict), "names and values"),
    **dict.fromkeys(("subfolder", "peft", "delta", "gguf_file"), OptionRule(lambda v: isinstance(v, str), "a string")),
    **dict.fromkeys(
        (
            *("truncation", "logits_cache", "trust_remote_code", "use_fast_tokenizer", "add_bos_token"),
            *("parallelize", "enable_thinking", "gptqmodel"),
        ),
        _FLAG,
    ),
}
# Alike enough to be a slip: "frist_chunk" is, but transformers' own device_map is not (to lm-eval's device).
_SLIP = 0.85


class ModelArgs(NamedTuple):
    """The method that the keywords describe, and the keywords that are not for it."""

    method: Method
    others: dict[str, Any]


def split_model_args(name: str, keywords: Mapping[str, Any], host: Collection[str]) -> ModelArgs:
    """Create the method from its keywords and leave the others to lm-eval's `hf` and to transformers.

    Args:
        name: The method's name.
        keywords: All keywords given.
        host: The keywords that `hf` itself names; it hands every other one to transformers.

    Raises:
        MethodError: Unknown method, or one of a broken package; a parameter of another method; a slip in the name of a
            parameter or of a keyword of `hf`; a value out of range.
    """
    method_class(name)  # raises MethodError
    parameters = {known: [field.name for field in fields(kind)] for known, kind in available_methods().items()}
    own = parameters[name]
    for keyword in keywords:
        if keyword in own or keyword in host:
            continue
        owners = [other for other, names in parameters.items() if keyword in names]
        if owners or get_close_matches(keyword, [*own, *host], n=1, cutoff=_SLIP):
            raise MethodError(_refusal(name, keyword, own, host, owners))
    method = make_method(name, **{keyword: value for keyword, value in keywords.items() if keyword in own})
    return ModelArgs(method, {keyword: value for keyword, value in keywords.items() if keyword not in own})


def _refusal(name: str, keyword: str, own: Collection[str], host: Collection[str], owners: Collection[str]) -> str:
    near = get_close_matches(keyword, [*own, *host], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    hint += f"; it is a parameter of {', '.join(owners)}" if owners else ""
    allowed = f"{', '.join(own) or 'none'}; and what --model hf accepts"
    return f"unknown parameter {keyword!r} of method {name!r}{hint} (allowed: {allowed})"


@contextmanager
def refused_keyword(name: str, keywords: Collection[str], host: Collection[str]) -> Iterator[None]:
    """Turn transformers' TypeError for a keyword that nobody knows into the message that names the allowed ones.

    Which keywords a model accepts is known to transformers alone; it refuses the rest before it loads weights.

    Args:
        name: The method's name.
        keywords: The keywords handed to transformers.
        host: The keywords that `hf` itself names.

    Raises:
        MethodError: One of `keywords` was refused.
    """
    try:
        yield
    except TypeError as error:
        refused = [keyword for keyword in keywords if f"unexpected keyword argument '{keyword}'" in str(error)]
        if not refused:
            raise
        own = [field.name for field in fields(available_methods()[name])]
        raise MethodError(_refusal(name, refused[0], own, host, [])) from None


def named(value: Any) -> str:
    """Return how results call a loaded model or tokenizer: by where it came from, or by its class."""
    return str(getattr(value, "name_or_path", "") or type(value).__name__)


def without_models(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with names in the place of loaded models, which lm-eval would copy for every task and save."""
    return {name: named(value) if isinstance(value, nn.Module) else value for name, value in args.items()}


def check_host_args(args: Mapping[str, Any]) -> None:
    """Check arguments that lm-eval's `hf` would fail on late, misread or ignore.

    Args:
        args: The arguments by name; those that are not among `HOST_RULES` are left to it.

    Raises:
        UsageError: One is of the wrong type or out of range, or a device that this machine has not.
    """
    for name, rule in HOST_RULES.items():
        if args.get(name) is not None and not rule.fits(args[name]):
            raise UsageError(f"{name} must be {rule.allowed}; found {args[name]!r}")
    if args.get("parallelize") and not torch.accelerator.is_available():
        raise UsageError("parallelize=True splits a model over GPUs, of which this machine has none; leave it out")
    device = args.get("device")
    # lm-eval's command gives its default on machines without a GPU, too.
    if device is not None and not (device == DEFAULT_DEVICE and not torch.cuda.is_available()):
        check_device(device)


def check_device(device: object) -> None:
    """Check that a device exists on this machine.

    Args:
        device: As for `torch.device`, by name.

    Raises:
        UsageError: It does not.
    """
    kinds = {"cpu": 1} | {kind: _device_count(kind) for kind in ("cuda", "mps", "xpu", "npu", "hpu")}
    kind, _, index = str(device).partition(":")
    there = [f"{kind}:{place}" if kind != "cpu" else kind for kind, count in kinds.items() for place in range(count)]
    if kind not in kinds or not re.fullmatch(r"(:[0-9]{1,4})?", str(device)[len(kind) :]):
        raise UsageError(unknown_name("device", str(device), there))
    if int(index or 0) >= kinds[kind]:
        raise UsageError(f"device {str(device)!r} is not on this machine (allowed: {', '.join(there)})")


def _device_count(kind: str) -> int:
    module = getattr(torch, kind, None)
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    return module.device_count() if module is not None and module.is_available() else 0


def checked_quantization(keywords: dict[str, Any]) -> dict[str, Any] | None:
    """Take from the keywords how weights are to be quantised while they are loaded.

    Args:
        keywords: Those that are not for the method; `quantization_config` is removed.

    Returns:
        The settings as they stand in a config, which lm-eval's `hf` reads from there alone; None: as they are saved.

    Raises:
        UsageError: It is no mapping with a `quant_method`, or was asked for with keywords of transformers 4.
    """
    old = [keyword for keyword in keywords if keyword in ("load_in_4bit", "load_in_8bit") or keyword.startswith("bnb_")]
    example = '{"pretrained": "...", "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true}}'
    if old:
        raise UsageError(
            f"{', '.join(old)}: transformers 5 takes these inside quantization_config, as in --model_args '{example}'"
        )
    found = keywords.pop("quantization_config", None)
    if found is None or (isinstance(found, dict) and isinstance(found.get("quant_method"), str)):
        return found
    raise UsageError(
        f"quantization_config must be a mapping with a quant_method, found {found!r}, as in --model_args '{example}'"
    )


def check_store(gib: object) -> None:
    """Check what a user gave as the size of a store.

    Raises:
        UsageError: It is not a number of at least 0.
    """
    if gib is not None and (isinstance(gib, bool) or not isinstance(gib, int | float) or not 0 <= gib < math.inf):
        raise UsageError(f"chunk_store_gib must be a number of GiB, 0 for none, found {gib!r}")


def checked_source(pretrained: str) -> str:
    """Return where to load a model from; `~` is expanded.

    Args:
        pretrained: A folder, or a name on the Hugging Face hub, which is not looked up here.

    Raises:
        ModelError: It can only be a path (absolute, starting with `.` or `~`, or more than two parts), and is missing.
    """
    path = Path(pretrained).expanduser()
    is_path = pretrained.startswith(("/", ".", "~")) or len(path.parts) > 2
    if is_path and not path.exists():
        raise ModelError(f"no model at {pretrained!r}{_near_folder(path)} (allowed: a folder or a name on the hub)")
    return str(path) if is_path else pretrained


def _near_folder(path: Path) -> str:
    siblings = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
    near = get_close_matches(path.name, siblings, n=1)
    return f"; did you mean {str(path.parent / near[0])!r}?" if near else ""


@contextmanager
def one_line_errors(what: str, source: str) -> Iterator[None]:
    """Turn what transformers raises for something that it cannot find or read into one line.

    Args:
        what: What is being loaded, for example "model".
        source: The folder or the name on the hub that the user gave.

    Raises:
        ModelError: Instead of an OSError, a ValueError or, where a package is missing, an ImportError.
    """
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        where = "" if Path(source).exists() else f", no folder here{_near_folder(Path(source))}"
        raise ModelError(f"cannot load the {what} {source!r}{where}: {reason}") from None
