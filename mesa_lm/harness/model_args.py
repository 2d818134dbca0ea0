"""Check what a user typed in `--model_args` before any weight is loaded."""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from mesa_lm.errors import MethodError, ModelError, UsageError, unknown_name
from mesa_lm.methods.base import Method
from mesa_lm.methods.registry import available_methods, make_method

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
        MethodError: Unknown method; a parameter of another method; a slip in the name of a parameter or of a keyword
            of `hf`; a value out of range.
    """
    parameters = {known: [field.name for field in fields(kind)] for known, kind in available_methods().items()}
    if name not in parameters:
        raise MethodError(unknown_name("method", str(name), parameters))
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
