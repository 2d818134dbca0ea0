"""Make stock lm-eval find the model `mesa-hf` and this project's tasks.

lm-eval 0.4.13 discovers neither. `install` waits for lm-eval's own modules to be imported and then adds both. It is
called by the start-up hook (`startup.pth`, in site-packages `mesa_lm.pth`) when `lm_eval` is first imported, and by
`import mesa_lm` where no start-up hook runs.
"""

import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, version
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from mesa_lm.errors import ModelError

logger = logging.getLogger(__name__)

MODEL_NAME = "mesa-hf"
MODEL_TARGET = "mesa_lm.harness.model:MesaHFLM"  # imported only when somebody asks for the model
SQUAD_PACKAGE = "transformers.data.metrics"  # which transformers 5 has no more, but SCROLLS and others import


def install() -> None:
    """Offer model and tasks to lm-eval, now or as soon as it is imported; calling it again does nothing.

    Nothing is imported as long as lm-eval is not. A failure is logged and leaves lm-eval as it was.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    sys.meta_path.append(_SquadFinder())
    for name, offer in _OFFERS.items():
        if name in sys.modules:
            _attempt(offer)


def check_lm_eval() -> None:
    """Check that lm-eval is one that this release extends.

    0.5, of which a preview is out, moves what is extended: metrics and scoring become classes of their own, and the
    collection of results that sweeps are merged with is another.

    Raises:
        ModelError: It is not.
    """
    if (found := _newer_version()) is not None:
        raise ModelError(f"mesa-lm extends lm-eval 0.4 from 0.4.13 on, found {found}; pip install 'lm-eval<0.5'")


def _newer_version() -> str | None:
    """Return the version of lm-eval where it is none of the 0.4 releases."""
    try:
        found = version("lm_eval")
    except PackageNotFoundError:
        return None
    return None if found.split(".")[:2] == ["0", "4"] else found


def _offer_model() -> None:
    """Register the model by name, unless lm-eval (in releases after 0.4.13) discovered our entry point itself."""
    from lm_eval.api.registry import model_registry

    if MODEL_NAME not in model_registry:
        model_registry.register(MODEL_NAME, target=MODEL_TARGET)


def _offer_evaluation() -> None:
    """Extend lm-eval's evaluation, see `mesa_lm.harness.evaluation`."""
    extension = importlib.import_module("mesa_lm.harness.evaluation")
    extension.extend_evaluator(sys.modules["lm_eval.evaluator"])


def _offer_command() -> None:
    """Extend lm-eval's command, see `mesa_lm.harness.lm_eval_command`."""
    extension = importlib.import_module("mesa_lm.harness.lm_eval_command")
    extension.extend_command(sys.modules["lm_eval._cli.harness"])


def _offer_tasks() -> None:
    """Put our TaskManager in the place of lm-eval's, in every module that has it."""
    manager = sys.modules.get("lm_eval.tasks.manager")
    if manager is None:
        return
    discovery = importlib.import_module("mesa_lm.harness.task_manager")
    # Whoever imports it first gets here while it is half executed; it is watched too, so we come again.
    ours = getattr(discovery, "TaskManager", None)
    if ours is None:
        return
    stock = manager.TaskManager
    for name, module in list(sys.modules.items()):
        if name.startswith("lm_eval.") and vars(module).get("TaskManager") is stock:
            vars(module)["TaskManager"] = ours


_OFFERS: dict[str, Callable[[], None]] = {
    "lm_eval.models": _offer_model,
    "lm_eval.tasks.manager": _offer_tasks,
    "mesa_lm.harness.task_manager": _offer_tasks,
    "lm_eval.evaluator": _offer_evaluation,
    "lm_eval._cli.harness": _offer_command,
}


def _attempt(offer: Callable[[], None]) -> None:
    """Call `offer`; log what goes wrong, because our faults must not take lm-eval down.

    An lm-eval that is not extended is offered the model alone, which says why it cannot be used.
    """
    if offer is not _offer_model and _newer_version() is not None:
        return
    try:
        offer()
    except Exception as error:
        logger.warning("mesa-lm is installed but could not be activated: %r", error)


class _Finder:
    """An import hook that makes an offer right after a module named in `_OFFERS` was executed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a watched module as usual and extend its execution; leave every other one to the next finder."""
        offer = _OFFERS.get(name)
        spec = PathFinder.find_spec(name, path, target) if offer else None
        if offer is None or spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_offer(module: ModuleType) -> None:
            execute(module)
            _attempt(offer)

        # On the instance, so that the loader keeps its type: inspect and importlib.resources ask for it.
        spec.loader.exec_module = execute_and_offer  # type: ignore[method-assign]
        return spec


class _SquadFinder:
    """An import hook that has SQuAD's metrics where nobody else has them."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find our own metrics under the name of transformers' module, and a package around them."""
        if name not in (SQUAD_PACKAGE, f"{SQUAD_PACKAGE}.squad_metrics"):
            return None
        parts: list[str] | None = [] if name == SQUAD_PACKAGE else None
        return spec_from_file_location(
            name, Path(__file__).with_name("squad_metrics.py"), submodule_search_locations=parts
        )
