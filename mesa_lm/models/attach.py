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
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import fields
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from mesa_lm.attention.chunk_store import ChunkStore
from mesa_lm.attention.forward import Forward
from mesa_lm.attention.kernels import Scoring
from mesa_lm.attention.model_pass import Pass
from mesa_lm.errors import MethodError, ModelError
from mesa_lm.methods.base import Method
from mesa_lm.methods.origin import Origin
from mesa_lm.methods.registry import make_method
from mesa_lm.methods.train_length import train_length_of
from mesa_lm.models.attention_forwards import OWN_CALLS
from mesa_lm.models.families import FAMILIES, check_supported, family_of, layer_windows
from mesa_lm.models.growing_cache import let_grow
from mesa_lm.models.inspection import attention_modules, layers_of, rotary_modules
from mesa_lm.models.position_tables import lengthen_tables
from mesa_lm.models.remote_code import keeping_logits, try_out
from mesa_lm.models.replacing import replaced
from mesa_lm.models.static_rope import scale_statically

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
    layer = module.layer_idx
    assert isinstance(layer, int)
    output = current.attend(layer, query, key, value, scoring)
    return output.transpose(1, 2).contiguous(), None


def _attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """What the functions of `own_calls` call; shapes as in `Pass.attend`."""
    return _running.get()[0].attend(layer, query, key, value, scaling)


def _no_mask(*args: Any, **kwargs: Any) -> Tensor:
    """Stand in for a mask: passes have no padding and see to what is seen; some models need a tensor."""
    return torch.zeros(1, 1, 1, 1)


# Passes are Python code through and through: compiled layers leave their graph here.
AttentionInterface.register(ATTENTION, torch.compiler.disable(_attention))
AttentionMaskInterface.register(ATTENTION, _no_mask)


class Handle:
    """An attached method; a context manager that detaches it on exit.

    Attributes:
        model: The model it is attached to.
        method: The method, bound to the model: every parameter is concrete.
        columns: (rows, len) input columns of the tokens in the pass that runs, for whoever hooks into the model's
            layers; None while the untouched model runs.
        store: Middle chunks that prompts may share, see `reuse_chunks`; None: none.
        on_pass: Called before every pass with the number of its tokens, to show progress within a long call.
    """

    def __init__(self, model: PreTrainedModel, method: Method) -> None:
        self.model, self.method = model, method
        self._attached = False
        self.columns: Tensor | None = None
        self.store: ChunkStore | None = None
        self.on_pass: Callable[[int], None] | None = None
        self._longest = method.longest_input(model.config)

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
        """Whether a cache of an input's beginning, once cropped to it, serves every input that begins like it."""
        return not self.method.depends_on_length and self._layers.share_chunks

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.remove()

    def attach(self) -> None:
        """Replace the model's forward.

        Raises:
            ModelError: A method is attached already, or the model's attention is not what its type stands for.
        """
        other = getattr(self.model, "_mesa_handle", None)
        if other is not None:
            raise ModelError(f"method {other.method.name!r} is attached to this model already; remove it first")
        is_origin = isinstance(self.method, Origin)
        if not is_origin:
            self._attention_modules = attention_modules(self.model)
            self._layers = layers_of(self.model, _train_length(self.method, self.model.config))
            if self._layers.all_windowed:
                logger.warning(
                    "%s: every layer of this model keeps its sliding window, which is within the training length; the "
                    "method changes nothing",
                    self.method.name,
                )
        self.model._mesa_handle = self  # type: ignore[assignment]
        self._attached = True
        self._undo = ExitStack()
        self._undo.callback(lengthen_tables(self.model))
        self._original = self.model.forward
        if is_origin:
            self._replace_forward(self._stock_forward)
            return
        if self.method.static_rope:
            self._undo.callback(scale_statically(self.model, self._layers, self.method, self._attention_modules))
            self._undo.callback(self.model.register_forward_pre_hook(self._look_at_length, with_kwargs=True).remove)
            self._replace_forward(self._stock_forward)
            return
        self._original, self._rotary_modules = keeping_logits(self._original, self.model), rotary_modules(self.model)
        self._configs = list({id(c): c for m in self.model.modules() if (c := getattr(m, "config", None))}.values())
        if family_of(self.model.config).folder is None:
            try:
                try_out(self.model, self._layers, self._original, self._run_pass, self._own_attention)
            except ModelError:
                self.remove()
                raise
        # torch.compile leaves it as it is; what is compiled inside the model stays compiled.
        self._replace_forward(torch.compiler.disable(self._forward))

    def _replace_forward(self, own: Callable[..., Any]) -> None:
        @functools.wraps(self.model.forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return own(*args, **kwargs)

        self._undo.callback(replaced(self.model, "forward", forward))

    def remove(self) -> None:
        """Give the model its own forward back; calling it again does nothing."""
        if not self._attached:
            return
        self._attached = False
        del self.model._mesa_handle
        self._undo.close()

    def _stock_forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model's own forward with a cache that grows in place; where it has gradients, as it is."""
        # A cache is hardly ever given by position.
        if not torch.is_grad_enabled() and not torch.compiler.is_compiling() and len(args) <= 1:
            use_cache = kwargs.get("use_cache")
            use_cache = getattr(self.model.config, "use_cache", False) if use_cache is None else use_cache
            family = FAMILIES.get(self.model.config.model_type)
            is_stock = family is not None and family.folder is not None
            if use_cache and kwargs.get("past_key_values") is None and is_stock:
                kwargs["past_key_values"] = DynamicCache(config=self.model.config)  # as these models do themselves
            let_grow(kwargs.get("past_key_values"))
        return self._original(*args, **kwargs)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        signature = inspect.signature(type(self.model).forward)
        added = {} if "logits_to_keep" in signature.parameters else {"logits_to_keep": kwargs.get("logits_to_keep", 0)}
        given = {name: value for name, value in kwargs.items() if name not in added}
        bound = signature.bind(self.model, *args, **given).arguments
        call = {**bound.pop("kwargs", {}), **bound, **added}
        forward = Forward(self.method, self._layers, self._run_pass, store=self.store, **_inputs(call, self.model))
        if forward.is_untouched():
            return self._stock_forward(*args, **kwargs)
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
        self, current: Pass, columns: Tensor, tokens: dict[str, Tensor], logits_to_keep: int | Tensor
    ) -> Tensor:
        self.columns = columns
        if self.on_pass is not None:
            self.on_pass(columns.numel())
        token = _running.set((current, self._fused))
        try:
            output = self._original(**tokens, use_cache=False, logits_to_keep=logits_to_keep, return_dict=True)
        finally:
            _running.reset(token)
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
        kept = [group.window for group in self._layers.groups]
        windows = [w for w in layer_windows(self.model.config) if w is not None and w not in kept]
        if windows and kv_len > min(windows):
            raise ModelError(
                f"model type {self.model.config.model_type!r} has attention windows of {min(windows)} tokens, more "
                f"than its training length; method {self.method.name!r} supports inputs of up to that length on it, "
                f"found {kv_len}"
            )

    @contextmanager
    def _own_attention(self) -> Iterator[None]:
        """Let the model's attention layers call attention of ours with queries and keys without positions."""
        own_call = family_of(self.model.config).own_call
        # Plain matrix products where the user asked for them; models with calls of their own may know nothing else.
        self._fused = own_call or self.model.config._attn_implementation != "eager"
        with ExitStack() as undo:
            for config in self._configs:
                undo.callback(setattr, config, "_attn_implementation", config._attn_implementation)
                config._attn_implementation = ATTENTION
            for module in self._rotary_modules:
                undo.callback(replaced(module, "forward", _no_rotation))
            if hasattr(self.model.base_model, "get_alibi_mask"):
                undo.callback(replaced(self.model.base_model, "get_alibi_mask", _no_mask))
            for layer, module in enumerate(self._attention_modules if own_call else []):
                attend = functools.partial(torch.compiler.disable(_attend), layer)
                call = functools.partial(OWN_CALLS[self.model.config.model_type], module, attend)
                undo.callback(replaced(module, "forward", call))
            yield


def _train_length(method: Method, config: Any) -> int | None:
    """Return the training length that a method goes by, None where neither it nor the config names one."""
    given: int | None = getattr(method, "train_length", None)
    try:
        return given or train_length_of(config)
    except MethodError:
        return None


def _no_rotation(states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Stand in for a rotary module: cos = 1 and sin = 0 for every position and component.

    One component stands for all: models that rotate part of a head split it by this width or broadcast it.
    """
    return states.new_ones(1, 1, 1), states.new_zeros(1, 1, 1)


def _inputs(call: dict[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """Pick the arguments of a forward call that decide what has to be computed."""
    use_cache = call.get("use_cache")
    if use_cache is None:
        use_cache = getattr(model.config, "use_cache", True)
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
        model: A transformers causal language model, or a PEFT or compiled model around one.
        method: A name of `available_methods()`, or a method with its parameters.
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
    base = getattr(model, "_orig_mod", model)  # torch.compile has it
    get_base_model: Callable[[], nn.Module] | None = getattr(base, "get_base_model", None)  # PEFT has it
    base = base if get_base_model is None else get_base_model()
    if not isinstance(base, PreTrainedModel):
        raise ModelError(f"extrapolate needs a transformers model, found {type(model).__name__}")
    if not isinstance(method, Origin):
        check_supported(base.config, method)
    handle = Handle(base, method.bind(base.config))
    handle.attach()
    return handle
