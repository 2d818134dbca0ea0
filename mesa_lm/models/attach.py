"""Attach a method to a transformers model: untouched, with other frequencies, or pass by pass.

While a method is attached the model's `forward` is replaced on the instance. Inputs that the method leaves alone go to
the original forward, nothing else being different. For all others `PassRunner` calls the original forward for one pass
after another, with attention of ours, only for the duration.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from contextlib import ExitStack
from threading import RLock
from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from mesa_lm.attention.cache_layer import woven_layer
from mesa_lm.attention.call import ForwardCall
from mesa_lm.attention.layer_groups import Layers
from mesa_lm.attention.ranks import Ranks
from mesa_lm.errors import ModelError
from mesa_lm.methods.base import Method
from mesa_lm.methods.origin import Origin
from mesa_lm.methods.registry import METHODS, create, make_method, method_class
from mesa_lm.models.families import FAMILIES, layer_windows
from mesa_lm.models.growing_cache import with_growing_cache
from mesa_lm.models.handle import Handle, refuse_second
from mesa_lm.models.inspection import attention_modules, known_train_length, layers_of
from mesa_lm.models.pass_runner import PassRunner, autocast_dtype
from mesa_lm.models.process_groups import ranks_of, refuse_windows
from mesa_lm.models.refusals import check_cache_place, refuse_cache, refuse_other_heads, refuse_training
from mesa_lm.models.remote_code import keeping_logits
from mesa_lm.models.replacing import replace_method
from mesa_lm.models.static_rope import StaticRopeHandle
from mesa_lm.models.support import check_supported
from mesa_lm.models.trial import needs_trial, try_out

logger = logging.getLogger(__name__)


class UntouchedHandle(Handle):
    """A model of any type that runs as it is."""

    def __init__(self, model: PreTrainedModel, method: Method) -> None:
        super().__init__(model, method, layers=None)
        family = FAMILIES.get(model.config.model_type)
        if family is not None and (objection := family.objection(model.config)):
            logger.warning("origin runs the model as it is, but model type %r %s", model.config.model_type, objection)

    def _replacement(self, forward: Callable[..., Any], undo: ExitStack) -> Callable[..., Any]:
        return with_growing_cache(forward, self.model)


class PassHandle(Handle):
    """A model that runs pass by pass where the method does not leave an input alone."""

    def __init__(
        self,
        model: PreTrainedModel,
        method: Method,
        layers: Layers,
        attention: list[nn.Module],
        ranks: Ranks | None = None,
        is_offloaded: bool = False,
    ) -> None:
        for group in layers.groups:
            if group.window is None:
                method.check_pairs(group.encoding.pairs)
        super().__init__(model, method, layers)
        self._ranks, self._is_offloaded = ranks, is_offloaded
        self._runner, self._attention = PassRunner(model, layers, attention), attention
        self._placed = _placement(model)
        self._lock = RLock()  # while a pass runs, the model's attention is exchanged: no other call must meet it
        self._signature = inspect.signature(type(model).forward)
        kept = [group.window for group in layers.groups]
        lost = [window for window in layer_windows(model.config) if window is not None and window not in kept]
        self._shortest_lost_window = min(lost, default=None)
        if needs_trial(model):
            try_out(model, self._runner)

    def _replacement(self, forward: Callable[..., Any], undo: ExitStack) -> Callable[..., Any]:
        own = keeping_logits(forward, self.model)
        if hasattr(self.model, "init_continuous_batching"):
            replace_method(self.model, "init_continuous_batching", self._refuse_paging, undo)
        # torch.compile leaves it as it is; what is compiled inside the model stays compiled.
        extrapolated: Callable[..., Any] = torch.compiler.disable(self._forward)
        return functools.partial(extrapolated, own, with_growing_cache(own, self.model))

    def _forward(self, own: Callable[..., Any], untouched: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stand in for the model's forward, `own`; called alone it is `untouched`."""
        with self._lock:
            arguments = self._named(args, kwargs)
            call = forward_call(arguments, self.model.config)
            longest = self._beyond(call)
            if longest is None:
                return untouched(*args, **kwargs)
            self._refuse(arguments, longest)
            refuse_training(self.model, self.method, call)
            self._warn_beyond(longest)
            self._follow_model()
            if self._ranks is not None:
                self._ranks.check_alike(call)
            try:
                result = self._runner.run(
                    call, self.method, own, self.store, self._ranks, self._is_offloaded, self._note_pass
                )
            finally:
                self.columns = None
            return self._returned(result, arguments)

    def _follow_model(self) -> None:
        """Look at the layers anew after the model went to another device or dtype, or into autocast or out of it."""
        placed = _placement(self.model)
        if placed == self._placed:
            return
        assert self.layers is not None
        self.layers = layers_of(
            self.model, getattr(self.method, "train_length", None) or known_train_length(self.model.config)
        )
        self._runner, self._placed = PassRunner(self.model, self.layers, self._attention), placed
        if self.store is not None:
            self.store.clear()

    def _refuse_paging(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Stand in for continuous batching, which packs rows and has a cache of its own."""
        raise ModelError(
            f"continuous batching (generate_batch) is not available under method {self.method.name!r}; use generate()"
        )

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by name."""
        added = {}
        if "logits_to_keep" not in self._signature.parameters:
            kwargs = dict(kwargs)
            added["logits_to_keep"] = kwargs.pop("logits_to_keep", 0)
        bound = self._signature.bind(self.model, *args, **kwargs).arguments
        return {**bound.pop("kwargs", {}), **bound, **added}

    def _beyond(self, call: ForwardCall) -> int | None:
        """Return the most tokens of a row; None where the untouched model gives the call's result."""
        longest, cached = call.past + call.new, call.past > 0
        if self.method.remembers:  # what is cached now is wanted later
            cached = cached or call.use_cache or call.cache is not None
        if woven_layer(call.cache) is not None:
            return longest
        # The mask is looked at only where padding may matter.
        if self.method.is_untouched(longest, cached):
            return None
        longest = call.longest_row()
        return None if self.method.is_untouched(longest, cached) else longest

    def _refuse(self, arguments: dict[str, Any], kv_len: int) -> None:
        """Refuse what would give wrong or missing results, before any work."""
        for name in ("output_attentions", "output_hidden_states"):
            asked = arguments.get(name)
            if getattr(self.model.config, name, False) if asked is None else asked:
                raise ModelError(
                    f"{name} is not available beyond the training length under method {self.method.name!r}"
                )
        window = self._shortest_lost_window
        if window is not None and kv_len > window:
            raise ModelError(
                f"model type {self.model.config.model_type!r} has attention windows of {window} tokens, more "
                f"than its training length; method {self.method.name!r} supports inputs of up to that length on it, "
                f"found {kv_len}"
            )
        cache: Cache | None = arguments.get("past_key_values")
        if cache is not None:
            refuse_cache(cache, self.method)

    def _note_pass(self, columns: Tensor) -> None:
        """Tell whoever listens which tokens run next."""
        self.columns = columns
        if self.on_pass is not None:
            self.on_pass(columns.numel())

    def _returned(self, result: CausalLMOutputWithPast, arguments: dict[str, Any]) -> Any:
        """Return a result in the form that the caller asked for."""
        labels = arguments.get("labels")
        if labels is not None:
            vocab_size = self.model.config.get_text_config().vocab_size
            loss = self.model.loss_function(logits=result.logits, labels=labels, vocab_size=vocab_size)
            result = CausalLMOutputWithPast(loss=loss, logits=result.logits, past_key_values=result.past_key_values)
        return_dict = arguments.get("return_dict")
        if return_dict is None:
            return_dict = self.model.config.return_dict
        return result if return_dict else result.to_tuple()


def _placement(model: PreTrainedModel) -> tuple[torch.device, torch.dtype, torch.dtype | None]:
    """Return where a model runs, its dtype, and that of autocast where it is on."""
    return model.device, model.dtype, autocast_dtype(model.device.type)


def forward_call(arguments: dict[str, Any], config: Any) -> ForwardCall:
    """Return the arguments of a model's forward that decide what has to be computed.

    Args:
        arguments: By name.
        config: Of the model.

    Raises:
        ModelError: The cache is of another kind than transformers' own.
    """
    use_cache, cache = arguments.get("use_cache"), arguments.get("past_key_values")
    mask = arguments.get("attention_mask")
    if isinstance(mask, dict):  # one for each kind of layer, as generate() prepares them for a static cache
        arguments = {**arguments, "attention_mask": mask.get("full_attention", next(iter(mask.values())))}
    if cache is not None and not isinstance(cache, Cache):
        raise ModelError(f"past_key_values must be a transformers Cache, found {type(cache).__name__}")
    return ForwardCall(
        **{name: arguments.get(name) for name in ("input_ids", "inputs_embeds", "attention_mask", "position_ids")},
        cache=cache,
        use_cache=getattr(config, "use_cache", True) if use_cache is None else use_cache,
        logits_to_keep=arguments.get("logits_to_keep", 0),
    )


def extrapolate(
    model: nn.Module,
    method: str | Method | type[Method],
    *,
    process_group: dist.ProcessGroup | None = None,
    cache: Literal["offloaded"] | None = None,
    **options: Any,
) -> Handle:
    """Attach a method to a model; the model then computes it in `forward` and `generate`.

    Args:
        model: A transformers causal language model, or a PEFT or compiled model around one.
        method: A name of `available_methods()`, or a method with its parameters.
        process_group: Processes that share every prompt, each with the same weights and the same calls; the method must
            cut prompts into chunks. None: this process has its prompts to itself.
        cache: "offloaded": beyond what the method leaves alone, keys and values lie in the host's memory, and a layer's
            are on its device while it runs; for methods that cut prompts into chunks. None: with their layers.
        **options: Parameters by name, if `method` is a name or a class.

    Returns:
        A handle: use it as a context manager, or call its `remove()`.

    Raises:
        MethodError: Unknown method or parameter, or parameters that do not fit the model.
        ModelError: The model is not supported, alone or with a process group, or has a method attached already. The
            model then is as it was.
    """
    asked = _created(method, options)
    base = _base_model(model)
    if not isinstance(asked, Origin):
        refuse_other_heads(base)
        check_supported(base.config, asked)
    bound = asked.bind(base.config)
    ranks = ranks_of(process_group, bound)
    check_cache_place(cache, bound, base.device)
    refuse_second(base)
    handle: Handle
    if isinstance(bound, Origin):
        handle = UntouchedHandle(base, bound)
    else:
        attention = attention_modules(base)
        layers = layers_of(base, getattr(bound, "train_length", None) or known_train_length(base.config))
        if bound.static_rope:
            handle = StaticRopeHandle(base, bound, layers, attention)
        else:
            refuse_windows(ranks, layers, base.config)
            handle = PassHandle(base, bound, layers, attention, ranks, cache is not None)
    handle.attach()
    return handle


def _created(method: str | Method | type[Method], options: dict[str, Any]) -> Method:
    """Return the method that was asked for, not bound yet."""
    if isinstance(method, str):
        return make_method(method, **options)
    if isinstance(method, type):
        return create(method_class(method.name, options.get("variant")) if method in METHODS else method, options)
    if options:
        raise ModelError(
            f"parameters {', '.join(options)} must be given inside the method {type(method).__name__}(...)"
        )
    return method


def _base_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model that a compiled or adapted model is made around."""
    base = getattr(model, "_orig_mod", model)  # torch.compile has it
    get_base_model: Callable[[], nn.Module] | None = getattr(base, "get_base_model", None)  # PEFT has it
    base = base if get_base_model is None else get_base_model()
    if not isinstance(base, PreTrainedModel):
        raise ModelError(f"extrapolate needs a transformers model, found {type(model).__name__}")
    return base
