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
    from mesa_lm.models.attach import extrapolate
    from mesa_lm.models.handle import Handle
    from mesa_lm.models.support import check_supported

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
    modules = {"Handle": "handle", "check_supported": "support", "extrapolate": "attach"}
    if name in modules:
        return getattr(import_module(f"mesa_lm.models.{modules[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
