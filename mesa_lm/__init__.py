"""Training-free context extrapolation for Hugging Face causal language models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mesa_lm.errors import MesaError, MethodError, ModelError, UsageError
from mesa_lm.methods import Mesa, Method, Origin, make_method, methods
from mesa_lm.plugin import install

if TYPE_CHECKING:
    from mesa_lm.families import check_supported
    from mesa_lm.patching import Handle, extrapolate

__version__ = "0.1.0"

__all__ = [
    "Handle",
    "Mesa",
    "MesaError",
    "Method",
    "MethodError",
    "ModelError",
    "Origin",
    "UsageError",
    "check_supported",
    "extrapolate",
    "make_method",
    "methods",
]

# Where no start-up hook runs, importing the package is what makes lm-eval find model and tasks.
install()


def __getattr__(name: str) -> Any:
    """Import what needs torch and transformers on first use, so that importing the package stays cheap."""
    if name in ("Handle", "check_supported", "extrapolate"):
        return getattr(import_module("mesa_lm.families" if name == "check_supported" else "mesa_lm.patching"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
