"""The table of methods, and making one from its name and parameters."""

from dataclasses import fields
from typing import Any

from mesa_lm.errors import MethodError, unknown_name
from mesa_lm.methods.base import Method
from mesa_lm.methods.dpe import DPE
from mesa_lm.methods.dual_chunk import DualChunk
from mesa_lm.methods.dynamic_ntk import DynamicNTK
from mesa_lm.methods.gali import GALI
from mesa_lm.methods.infllm import InfLLM
from mesa_lm.methods.installed import installed_method, installed_methods
from mesa_lm.methods.lampe import LaMPE
from mesa_lm.methods.leaky_rerope import LeakyReRoPE
from mesa_lm.methods.lm_infinite import LMInfinite
from mesa_lm.methods.mesa import Mesa
from mesa_lm.methods.mesa_released import MesaReleased
from mesa_lm.methods.origin import Origin
from mesa_lm.methods.reattention import ReAttention
from mesa_lm.methods.rerope import ReRoPE
from mesa_lm.methods.rope_scaling import LinearScaling, NTKScaling, YaRN
from mesa_lm.methods.self_extend import SelfExtend
from mesa_lm.methods.stair import StairPE
from mesa_lm.methods.star import Star
from mesa_lm.methods.streaming_llm import StreamingLLM
from mesa_lm.methods.string import String

# Classes of one name are variants of a method: the first is its default, the others are chosen by `variant`.
METHODS: tuple[type[Method], ...] = (
    Origin,
    Mesa,
    MesaReleased,
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
    Star,
    String,
    LaMPE,
    DPE,
    InfLLM,
    ReAttention,
    GALI,
)


def available_methods() -> dict[str, type[Method]]:
    """Return every method's class by its name, mesa-lm's own and those of installed packages.

    A package whose methods cannot be used is logged and left out.
    """
    found: dict[str, type[Method]] = {}
    for method in METHODS:
        found.setdefault(method.name, method)
    return found | installed_methods(taken=frozenset(found))


def method_class(name: str, variant: object = None) -> type[Method]:
    """Return the class of a method.

    Args:
        name: One of `available_methods()`.
        variant: Of the method; None is its default.

    Raises:
        MethodError: The name is unknown, or the package that offers it is broken.
    """
    found = [method for method in METHODS if method.name == name]
    if not found:
        installed = installed_method(str(name))
        if installed is None:
            raise MethodError(unknown_name("method", str(name), available_methods()))
        return installed
    return next((method for method in found if variant is not None and default_variant(method) == variant), found[0])


def default_variant(method: type[Method]) -> str | None:
    """Return which variant of its method a class is, None where there are no others."""
    return next((str(one.default) for one in fields(method) if one.name == "variant"), None)


def parameter_names(method: type[Method]) -> list[str]:
    """Return the names of a method's parameters."""
    return [one.name for one in fields(method)]


def make_method(name: str, **options: Any) -> Method:
    """Create a method from its name and its parameters by name.

    Args:
        name: One of `available_methods()`.
        **options: Parameters; those left out take their defaults.

    Raises:
        MethodError: Unknown name or parameter, or a value out of range.
    """
    return create(method_class(name, options.get("variant")), options)


def create(kind: type[Method], options: dict[str, Any]) -> Method:
    """Create a method from its class, installed or not, and its parameters by name.

    Args:
        kind: The class.
        options: Parameters; those left out take their defaults.

    Raises:
        MethodError: Unknown parameter, or a value out of range.
    """
    name, allowed = kind.name, parameter_names(kind)
    others = {other for method in METHODS if method.name == name for other in parameter_names(method)}
    for option, value in options.items():
        if option in others.difference(allowed):
            raise MethodError(
                f"{name}: {option} has no meaning in variant {default_variant(kind)!r}, found {value!r}; leave it out"
            )
        if option not in allowed:
            raise MethodError(unknown_name(f"parameter of method {name!r}", option, allowed))
    return kind(**options)


def check_cuts_prompts(method: Method, asked: str) -> None:
    """Refuse a method for what is made for chunks of prompts.

    Args:
        method: The method.
        asked: The option that needs chunks.

    Raises:
        MethodError: It does not cut prompts into chunks.
    """
    if not method.cuts_prompts:
        allowed = ", ".join(name for name, kind in available_methods().items() if kind.layout is not Method.layout)
        raise MethodError(
            f"{asked} is for methods that cut prompts into chunks, which {method.name!r} does not (allowed: {allowed})"
        )
