"""A method that is attached to a model: what all three ways of running one have in common."""

from __future__ import annotations

import functools
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields
from threading import Event
from typing import Any, Self

from torch import Tensor
from transformers import PreTrainedModel

from mesa_lm.attention.cache_layer import check_cache, given_cache
from mesa_lm.attention.chunk_store import ChunkStore
from mesa_lm.attention.layer_groups import Layers
from mesa_lm.errors import ModelError
from mesa_lm.methods.base import Method
from mesa_lm.models.families import FAMILIES
from mesa_lm.models.generating import Generating
from mesa_lm.models.replacing import replace_method

logger = logging.getLogger(__name__)


class Handle(ABC):
    """An attached method; a context manager that detaches it on exit.

    Attributes:
        model: The model it is attached to.
        method: The method, bound to the model: every parameter is concrete.
        layers: How the model's layers are treated; None where the model runs untouched.
        columns: (rows, len) input columns of the tokens in the pass that runs, for whoever hooks into the model's
            layers; None while the untouched model runs.
        store: Middle chunks that prompts may share, see `reuse_chunks`; None: none.
        on_pass: Called before every pass with the number of its tokens, to show progress within a long call.
    """

    def __init__(self, model: PreTrainedModel, method: Method, layers: Layers | None) -> None:
        """Prepare what `attach` does.

        Args:
            model: The model.
            method: Bound to it.
            layers: Its layers; None where it runs untouched.
        """
        self.model, self.method, self.layers = model, method, layers
        self.columns: Tensor | None = None
        self.store: ChunkStore | None = None
        self.on_pass: Callable[[int], None] | None = None
        self._longest = method.longest_input(model.config)
        self._undo = ExitStack()
        self._generating = Generating()
        if layers is not None and layers.all_windowed:
            logger.warning(
                "%s: every layer of this model keeps its sliding window, which is within the training length; the "
                "method changes nothing",
                method.name,
            )

    @abstractmethod
    def _replacement(self, forward: Callable[..., Any], undo: ExitStack) -> Callable[..., Any]:
        """Return what the model's forward is replaced by, and change what else has to be changed.

        Args:
            forward: The model's.
            undo: Closing it undoes the changes.
        """

    def attach(self) -> None:
        """Replace the model's forward; where that fails, the model stays as it was.

        Raises:
            ModelError: A method is attached already.
        """
        refuse_second(self.model)
        with ExitStack() as undo:
            self.model._mesa_handle = self  # type: ignore[assignment]
            undo.callback(delattr, self.model, "_mesa_handle")
            family = FAMILIES.get(self.model.config.model_type)
            if family is not None and family.lengthen is not None:
                family.lengthen(self.model, undo)
            original, kept_by_others = self.model.forward, Event()
            own = self._replacement(original, undo)

            @functools.wraps(original)
            def forward(*args: Any, **kwargs: Any) -> Any:
                if kept_by_others.is_set():
                    return original(*args, **kwargs)
                self._generating.check_open()
                self._check_attached()
                check_cache(given_cache(args, kwargs), self.method)
                return own(*args, **kwargs)

            replace_method(self.model, "forward", forward, undo)
            undo.callback(self._note_others, forward, kept_by_others)
            self._follow_generation(undo)
            self._undo = undo.pop_all()

    def _note_others(self, forward: Callable[..., Any], kept_by_others: Event) -> None:
        """Note whether others, such as accelerate, have put a function of theirs around ours, and keep it."""
        if self.model.__dict__.get("forward") is not forward:
            kept_by_others.set()

    def _follow_generation(self, undo: ExitStack) -> None:
        """Know which threads generate: without the method they would go on with the untouched model."""
        own: Callable[..., Any] | None = getattr(self.model, "generate", None)
        if own is None:
            return

        @functools.wraps(own)
        def generate(*args: Any, **kwargs: Any) -> Any:
            with self._generating.by_this_thread(kwargs.get("streamer")):
                self._check_attached()
                return own(*args, **kwargs)

        replace_method(self.model, "generate", generate, undo)

    def _check_attached(self) -> None:
        """Refuse to answer for a model that the method was removed from, or for a shallow copy of it."""
        if not self.is_attached:
            raise ModelError(
                f"method {self.method.name!r} was removed from this model before this call; keep its `with` block open "
                "until every thread is done (thread.join())"
            )

    @property
    def is_attached(self) -> bool:
        """Whether the model runs the method now."""
        return getattr(self.model, "_mesa_handle", None) is self

    def remove(self) -> None:
        """Give the model its own forward back; calling it again does nothing.

        Raises:
            ModelError: Other threads were generating under the method. They have been stopped, by the same error, and
                the method is removed.
        """
        if not self.is_attached:
            return
        with self._generating.closed() as stopped:
            self._undo.close()
        if stopped:
            raise ModelError(
                f"method {self.method.name!r} was removed while another thread generated under it, which was stopped; "
                "wait for it (thread.join()) before you leave the `with` block"
            )

    def __enter__(self) -> Self:
        if not self.is_attached:
            raise ModelError(
                f"this handle's method {self.method.name!r} was removed from the model; call extrapolate() again"
            )
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        try:
            self.remove()
        except ModelError:
            if exc_type is None:  # else what went wrong inside the block is what matters
                raise

    def reuse_chunks(self, budget_bytes: int) -> None:
        """Keep keys and values of middle chunks for later prompts with the same first chunk and the same chunk.

        Such prompts differ behind a shared document, or are a document at growing lengths with a given `chunk_width`;
        only methods that cut prompts into chunks have any. Call it again after a change of the model's weights.

        Args:
            budget_bytes: Most memory for them; 0 keeps none.
        """
        self.store = ChunkStore(budget_bytes) if budget_bytes else None

    @property
    def keeps_beginnings(self) -> bool:
        """Whether a cache of an input's beginning, once cropped to it, serves every input that begins like it.

        Of an untouched model's layers nothing is known, so there it is not promised.
        """
        return self.layers is not None and self.layers.share_chunks and not self.method.depends_on_length

    def _warn_beyond(self, length: int) -> None:
        """Warn once where an input, of so many tokens, is longer than the method's parameters serve."""
        if length > self._longest:
            given = {field.name: getattr(self.method, field.name) for field in fields(self.method)}
            logger.warning(
                "%s(%s) keeps what the model saw in training up to %d tokens, but the input has %d",
                self.method.name,
                ", ".join(f"{name}={value}" for name, value in given.items() if value is not None),
                self._longest,
                length,
            )
            self._longest = math.inf


def refuse_second(model: PreTrainedModel) -> None:
    """Refuse a model that has a method attached.

    Raises:
        ModelError: It has.
    """
    other = getattr(model, "_mesa_handle", None)
    if other is not None:
        raise ModelError(f"method {other.method.name!r} is attached to this model already; remove it first")
