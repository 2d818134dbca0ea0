"""Attach a method to a transformers model and detach it: the only file that knows transformers' internals.

While a method is attached the model's `forward` is replaced on the instance. Inputs that the method leaves alone go to
the original forward, nothing else being different. For all others the original forward is called for one pass after
another, with an attention function of ours and a rotary module that does not rotate, both only for the duration.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from mesa_lm.errors import ModelError
from mesa_lm.forward import Forward
from mesa_lm.methods import Method, Origin, make_method
from mesa_lm.rotary import Rotary

logger = logging.getLogger(__name__)

ATTENTION = "mesa_lm"
SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
# Their frequencies do not depend on the length of the input.
SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention function that transformers calls with unrotated states, (batch, heads, len, head_dim)."""
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    output = kwargs["mesa_pass"].attend(module.layer_idx, query, key, value, scaling)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)


def check_supported(config: Any) -> None:
    """Check that methods other than `origin` can run on models of this kind.

    Args:
        config: A transformers config.

    Raises:
        ModelError: The model type or its rotary scaling is not supported.
    """
    if config.model_type not in SUPPORTED_MODEL_TYPES:
        raise ModelError(
            f"model type {config.model_type!r} is not supported; supported are {', '.join(SUPPORTED_MODEL_TYPES)}"
        )
    rope_type = (config.rope_parameters or {}).get("rope_type", "default")
    if rope_type not in SUPPORTED_ROPE_TYPES:
        raise ModelError(
            f"model type {config.model_type!r} with rope_type {rope_type!r} is not supported: its frequencies depend "
            f"on the input's length; supported are {', '.join(SUPPORTED_ROPE_TYPES)}"
        )


def sliding_window_of(config: Any) -> int | None:
    """Return the narrowest attention window among the model's layers in tokens, None if all see everything."""
    window: int | None = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and "sliding_attention" not in layer_types:
        return None
    return window


class Handle:
    """An attached method; a context manager that detaches it on exit.

    Attributes:
        model: The model it is attached to.
        method: The method, bound to the model: every parameter is concrete.
        columns: (rows, len) input columns of the tokens in the pass that runs, for whoever hooks into the model's
            layers; None while the untouched model runs.
    """

    def __init__(self, model: PreTrainedModel, method: Method) -> None:
        self.model, self.method = model, method
        self._attached = False
        self.columns: Tensor | None = None
        self._longest = method.longest_input(model.config)

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
        if isinstance(self.method, Origin):
            return
        original = self.model.forward
        self._previous = self.model.__dict__.get("forward")
        self._original = original
        self._rotary_module = next(module for module in self.model.modules() if hasattr(module, "inv_freq"))
        self._rotary = Rotary(self._rotary_module, self.model.dtype)
        self._previous_rotary = self._rotary_module.__dict__.get("forward")
        if self.method.static_rope:
            parameters = self.method.rope_parameters(self.model.config, total=0)
            assert parameters is not None
            self._rotary_module.forward = self._rotary.scaled(parameters, total=0).module.forward
            self._hook = self.model.register_forward_pre_hook(self._look_at_length, with_kwargs=True)
            return
        self._configs = list({id(c): c for m in self.model.modules() if (c := getattr(m, "config", None))}.values())

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._forward(*args, **kwargs)

        self.model.forward = forward

    def remove(self) -> None:
        """Give the model its own forward back; calling it again does nothing."""
        if not self._attached:
            return
        self._attached = False
        del self.model._mesa_handle
        if isinstance(self.method, Origin):
            return
        if self.method.static_rope:
            self._hook.remove()
            _restore(self._rotary_module, self._previous_rotary)
        else:
            _restore(self.model, self._previous)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(type(self.model).forward).bind(self.model, *args, **kwargs).arguments
        call = {**bound.pop("kwargs", {}), **bound}
        forward = Forward(self.method, self._rotary, self._run_pass, **_inputs(call, self.model))
        if forward.is_untouched():
            return self._original(*args, **kwargs)
        self._refuse(call, forward.longest)
        self._warn_beyond(forward.longest)
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
        self, current: Any, columns: Tensor, tokens: dict[str, Tensor], logits_to_keep: int | Tensor
    ) -> Tensor:
        self.columns = columns
        output = self._original(
            **tokens, use_cache=False, logits_to_keep=logits_to_keep, return_dict=True, mesa_pass=current
        )
        logits: Tensor = output.logits
        return logits

    def _look_at_length(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of methods whose forward is the model's own."""
        tokens = next(
            value for value in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if value is not None
        )
        cache = kwargs.get("past_key_values")
        self._warn_beyond(tokens.shape[1] + (0 if cache is None else cache.get_seq_length()))

    def _warn_beyond(self, length: int) -> None:
        """Warn once where an input is longer than the method's parameters serve."""
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

    def _refuse(self, call: dict[str, Any], kv_len: int) -> None:
        """Refuse what would give wrong or missing results, before any work."""
        for name in ("output_attentions", "output_hidden_states"):
            if call.get(name) or (call.get(name) is None and getattr(self.model.config, name, False)):
                raise ModelError(
                    f"{name} is not available beyond the training length under method {self.method.name!r}"
                )
        window = sliding_window_of(self.model.config)
        if window is not None and kv_len > window:
            raise ModelError(
                f"model type {self.model.config.model_type!r} has attention windows of {window} tokens; method "
                f"{self.method.name!r} supports inputs of up to that length on it, found {kv_len}"
            )

    @contextmanager
    def _own_attention(self) -> Iterator[None]:
        """Let the model's attention layers call `_attention` with unrotated queries and keys."""
        implementations = [config._attn_implementation for config in self._configs]
        rotary_forward = self._rotary_module.__dict__.get("forward")
        try:
            for config in self._configs:
                config._attn_implementation = ATTENTION
            self._rotary_module.forward = _no_rotation
            yield
        finally:
            for config, implementation in zip(self._configs, implementations, strict=True):
                config._attn_implementation = implementation
            _restore(self._rotary_module, rotary_forward)


def _restore(module: nn.Module, forward: Any) -> None:
    """Give a module back the forward that its instance had, or its class's."""
    if forward is None:
        del module.forward
    else:
        module.forward = forward


def _no_rotation(states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Stand in for a rotary module: cos = 1 and sin = 0 for every position and component."""
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
        check_supported(base.config)
    handle = Handle(base, method.resolve(base.config))
    handle.attach()
    return handle
