"""Training-free context extrapolation for Hugging Face causal language models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mesa_lm.errors import MesaError, MethodError, ModelError, UsageError
from mesa_lm.harness.plugin import install
from mesa_lm.methods.base import Method
from mesa_lm.methods.mesa import Mesa
from mesa_lm.methods.origin import Origin
from mesa_lm.methods.registry import available_methods, make_method

if TYPE_CHECKING:
    from mesa_lm.models.attach import Handle, extrapolate
    from mesa_lm.models.families import check_supported

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
    "available_methods",
    "check_supported",
    "extrapolate",
    "make_method",
]

# Where no start-up hook runs, importing the package is what makes lm-eval find model and tasks.
install()


def __getattr__(name: str) -> Any:
    """Import what needs torch and transformers on first use, so that importing the package stays cheap."""
    if name in ("Handle", "check_supported", "extrapolate"):
        module = "mesa_lm.models.families" if name == "check_supported" else "mesa_lm.models.attach"
        return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
