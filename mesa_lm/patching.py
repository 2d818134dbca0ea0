"""Attach a method to a transformers model and detach it: the only file that knows transformers' internals.

While a method is attached the model's `forward` is replaced on the instance. Inputs that the method leaves alone go to
the original forward, nothing else being different. For all others the original forward is called for one pass after
another, with an attention function of ours and a rotary module that does not rotate, both only for the duration.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from mesa_lm.engine import Scoring
from mesa_lm.errors import MethodError, ModelError
from mesa_lm.families import FAMILIES, check_supported, family_of, layer_windows
from mesa_lm.forward import Forward
from mesa_lm.growing import let_grow
from mesa_lm.methods import Method, Origin, make_method, train_length_of
from mesa_lm.own_calls import OWN_CALLS
from mesa_lm.passes import Pass
from mesa_lm.reuse import ChunkStore
from mesa_lm.static_scaling import StaticScaling
from mesa_lm.structure import attention_modules, layers_of, rotary_modules

logger = logging.getLogger(__name__)

ATTENTION = "mesa_lm"
# The pass that runs, and whether fused kernels may compute it: not every model hands keywords down to its attention.
_running: ContextVar[tuple[Pass, bool]] = ContextVar("running pass")


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention function that transformers calls with unrotated states, (batch, heads, len, head_dim)."""
    current, fused = _running.get()
    scaling = kwargs.get("scaling")
    scoring = Scoring(query.shape[-1] ** -0.5 if scaling is None else scaling, kwargs.get("softcap"), fused)
    output = current.attend(module.layer_idx, query, key, value, scoring)
    return output.transpose(1, 2).contiguous(), None


def _attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """What the functions of `own_calls` call; shapes as in `Pass.attend`."""
    return _running.get()[0].attend(layer, query, key, value, scaling)


def _no_mask(*args: Any, **kwargs: Any) -> Tensor:
    """Stand in for a mask: passes have no padding and see to what is seen; some models need a tensor."""
    return torch.zeros(1, 1, 1, 1)


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)


class Handle:
    """An attached method; a context manager that detaches it on exit.

    Attributes:
        model: The model it is attached to.
        method: The method, bound to the model: every parameter is concrete.
        columns: (rows, len) input columns of the tokens in the pass that runs, for whoever hooks into the model's
            layers; None while the untouched model runs.
        store: Middle chunks that prompts may share, see `reuse_chunks`; None: none.
    """

    def __init__(self, model: PreTrainedModel, method: Method) -> None:
        self.model, self.method = model, method
        self._attached = False
        self.columns: Tensor | None = None
        self.store: ChunkStore | None = None

    def reuse_chunks(self, budget_bytes: int) -> None:
        """Keep keys and values of middle chunks for later prompts with the same first chunk and the same chunk.

        Such prompts differ behind a shared document, or are a document at growing lengths with a given `chunk_width`;
        only methods that cut prompts into chunks have any. Call it again after a change of the model's weights.

        Args:
            budget_bytes: Most memory for them; 0 keeps none.
        """
        self.store = ChunkStore(budget_bytes) if budget_bytes else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def attach(self) -> None:
        """Replace the model's forward.

        Raises:
            ModelError: A method is attached already.
        """
        other = getattr(self.model, "_mesa_handle", None)
        if other is not None:
            raise ModelError(f"method {other.method.name!r} is attached to this model already; remove it first")
        self.model._mesa_handle = self  # type: ignore[assignment]
        self._attached = True
        self._original = self.model.forward
        self._previous = self.model.__dict__.get("forward")
        if isinstance(self.method, Origin):
            self._replace_forward(self._stock_forward)
            return
        self._attention_modules = attention_modules(self.model)
        self._layers = layers_of(self.model, _train_length(self.method, self.model.config))
        if self._layers.all_windowed:
            logger.warning(
                "%s: every layer of this model keeps its sliding window, which is within the training length; the "
                "method changes nothing",
                self.method.name,
            )
        if self.method.static_rope:
            self._scaling = StaticScaling(self.model, self._layers, self.method, self._attention_modules)
            self._replace_forward(self._stock_forward)
            return
        self._configs = list({id(c): c for m in self.model.modules() if (c := getattr(m, "config", None))}.values())

        self._replace_forward(self._forward)

    def _replace_forward(self, own: Callable[..., Any]) -> None:
        @functools.wraps(self._original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return own(*args, **kwargs)

        self.model.forward = forward

    def remove(self) -> None:
        """Give the model its own forward back; calling it again does nothing."""
        if not self._attached:
            return
        self._attached = False
        del self.model._mesa_handle
        _restore(self.model, self._previous)
        if self.method.static_rope:
            self._scaling.remove()

    def _stock_forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model's own forward with a cache that grows in place; where it has gradients, as it is."""
        if not torch.is_grad_enabled() and len(args) <= 1:  # a cache is hardly ever given by position
            use_cache = kwargs.get("use_cache")
            use_cache = getattr(self.model.config, "use_cache", False) if use_cache is None else use_cache
            if use_cache and kwargs.get("past_key_values") is None and self.model.config.model_type in FAMILIES:
                kwargs["past_key_values"] = DynamicCache(config=self.model.config)  # as these models do themselves
            let_grow(kwargs.get("past_key_values"))
        return self._original(*args, **kwargs)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(type(self.model).forward).bind(self.model, *args, **kwargs).arguments
        call = {**bound.pop("kwargs", {}), **bound}
        forward = Forward(self.method, self._layers, self._run_pass, store=self.store, **_inputs(call, self.model))
        if forward.is_untouched():
            return self._stock_forward(*args, **kwargs)
        self._refuse(call, forward.longest)
        try:
            with torch.no_grad(), self._own_attention():
                result = forward.run()
        finally:
            self.columns = None
        labels = call.get("labels")
        if labels is not None:
            vocab_size = self.model.config.get_text_config().vocab_size
            loss = self.model.loss_function(logits=result.logits, labels=labels, vocab_size=vocab_size)
            result = CausalLMOutputWithPast(loss=loss, logits=result.logits, past_key_values=result.past_key_values)
        return_dict = call.get("return_dict")
        if return_dict is None:
            return_dict = self.model.config.return_dict
        return result if return_dict else result.to_tuple()

    def _run_pass(
        self, current: Pass, columns: Tensor, tokens: dict[str, Tensor], logits_to_keep: int | Tensor
    ) -> Tensor:
        self.columns = columns
        token = _running.set((current, self._fused))
        try:
            output = self._original(**tokens, use_cache=False, logits_to_keep=logits_to_keep, return_dict=True)
        finally:
            _running.reset(token)
        logits: Tensor = output.logits
        return logits

    def _refuse(self, call: dict[str, Any], kv_len: int) -> None:
        """Refuse what would give wrong or missing results, before any work."""
        for name in ("output_attentions", "output_hidden_states"):
            if call.get(name) or (call.get(name) is None and getattr(self.model.config, name, False)):
                raise ModelError(
                    f"{name} is not available beyond the training length under method {self.method.name!r}"
                )
        kept = [group.window for group in self._layers.groups]
        windows = [w for w in layer_windows(self.model.config) if w is not None and w not in kept]
        if windows and kv_len > min(windows):
            raise ModelError(
                f"model type {self.model.config.model_type!r} has attention windows of {min(windows)} tokens, more than "
                f"its training length; method {self.method.name!r} supports inputs of up to that length on it, found "
                f"{kv_len}"
            )

    @contextmanager
    def _own_attention(self) -> Iterator[None]:
        """Let the model's attention layers call attention of ours with queries and keys without positions."""
        implementations = [config._attn_implementation for config in self._configs]
        own_call = family_of(self.model.config).own_call
        # Plain matrix products where the user asked for them; models with calls of their own may know nothing else.
        self._fused = own_call or self.model.config._attn_implementation != "eager"
        replaced: list[tuple[nn.Module, Any]] = []

        def replace(module: nn.Module, forward: Callable[..., Any]) -> None:
            replaced.append((module, module.__dict__.get("forward")))
            module.forward = forward

        try:
            for config in self._configs:
                config._attn_implementation = ATTENTION
            for module in rotary_modules(self.model):
                replace(module, _no_rotation)
            if own_call:
                for layer, module in enumerate(self._attention_modules):
                    call = OWN_CALLS[self.model.config.model_type]
                    replace(module, functools.partial(call, module, functools.partial(_attend, layer)))
            yield
        finally:
            for config, implementation in zip(self._configs, implementations, strict=True):
                config._attn_implementation = implementation
            for module, forward in replaced:
                _restore(module, forward)

def _train_length(method: Method, config: Any) -> int | None:
    """Return the training length that a method goes by, None where neither it nor the config names one."""
    given: int | None = getattr(method, "train_length", None)
    try:
        return given or train_length_of(config)
    except MethodError:
        return None


def _restore(module: nn.Module, forward: Any) -> None:
    """Give a module back the forward that its instance had, or its class's."""
    if forward is None:
        del module.forward
    else:
        module.forward = forward


def _no_rotation(states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Stand in for a rotary module: cos = 1 and sin = 0 for every position and component.

    One component stands for all: models that rotate part of a head split it by this width or broadcast it.
    """
    return states.new_ones(1, 1, 1), states.new_zeros(1, 1, 1)


def _inputs(call: dict[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """Pick the arguments of a forward call that decide what has to be computed."""
    use_cache = call.get("use_cache")
    if use_cache is None:
        use_cache = model.config.use_cache
    cache = call.get("past_key_values")
    if cache is not None and not isinstance(cache, Cache):
        raise ModelError(f"past_key_values must be a transformers Cache, found {type(cache).__name__}")
    return {
        "input_ids": call.get("input_ids"),
        "inputs_embeds": call.get("inputs_embeds"),
        "attention_mask": call.get("attention_mask"),
        "position_ids": call.get("position_ids"),
        "cache": cache,
        "use_cache": use_cache,
        "logits_to_keep": call.get("logits_to_keep", 0),
    }


def extrapolate(model: nn.Module, method: str | Method | type[Method], **options: Any) -> Handle:
    """Attach a method to a model; the model then computes it in `forward` and `generate`.

    Args:
        model: A transformers causal language model, or a PEFT model around one.
        method: A name of `methods()`, or a method with its parameters.
        **options: Parameters by name, if `method` is a name or a class.

    Returns:
        A handle: use it as a context manager, or call its `remove()`.

    Raises:
        MethodError: Unknown method or parameter, or parameters that do not fit the model.
        ModelError: The model is not supported, or has a method attached already.
    """
    if isinstance(method, str):
        method = make_method(method, **options)
    elif isinstance(method, type):
        method = make_method(method.name, **options)
    elif options:
        raise ModelError(
            f"parameters {', '.join(options)} must be given inside the method {type(method).__name__}(...)"
        )
    get_base_model: Callable[[], nn.Module] | None = getattr(model, "get_base_model", None)  # PEFT has it
    base = model if get_base_model is None else get_base_model()
    if not isinstance(base, PreTrainedModel):
        raise ModelError(f"extrapolate needs a transformers model, found {type(model).__name__}")
    if not isinstance(method, Origin):
        check_supported(base.config, method)
    handle = Handle(base, method.resolve(base.config))
    handle.attach()
    return handle
