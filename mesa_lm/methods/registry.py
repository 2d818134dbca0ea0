"""The methods by name."""

from dataclasses import fields
from typing import Any

from mesa_lm.errors import MethodError, unknown_name
from mesa_lm.methods.base import Method
from mesa_lm.methods.dual_chunk import DualChunk
from mesa_lm.methods.dynamic_ntk import DynamicNTK
from mesa_lm.methods.leaky_rerope import LeakyReRoPE
from mesa_lm.methods.lm_infinite import LMInfinite
from mesa_lm.methods.mesa import Mesa
from mesa_lm.methods.origin import Origin
from mesa_lm.methods.rerope import ReRoPE
from mesa_lm.methods.rope_scaling import LinearScaling, NTKScaling, YaRN
from mesa_lm.methods.self_extend import SelfExtend
from mesa_lm.methods.stair import StairPE
from mesa_lm.methods.streaming_llm import StreamingLLM

_METHODS: tuple[type[Method], ...] = (
    Origin,
    Mesa,
    StairPE,
    ReRoPE,
    LeakyReRoPE,
    SelfExtend,
    LMInfinite,
    StreamingLLM,
    DualChunk,
    DynamicNTK,
    NTKScaling,
    LinearScaling,
    YaRN,
)


def available_methods() -> dict[str, type[Method]]:
    """Return every method's class by its name."""
    return {method.name: method for method in _METHODS}


def make_method(name: str, **options: Any) -> Method:
    """Create a method from its name and its parameters by name.

    Args:
        name: One of `available_methods()`.
        **options: Parameters; those left out take their defaults.

    Raises:
        MethodError: Unknown name or parameter, or a value out of range.
    """
    known = available_methods()
    if name not in known:
        raise MethodError(unknown_name("method", str(name), known))
    allowed = [field.name for field in fields(known[name])]
    for option in options:
        if option not in allowed:
            raise MethodError(unknown_name(f"parameter of method {name!r}", option, allowed))
    return known[name](**options)
