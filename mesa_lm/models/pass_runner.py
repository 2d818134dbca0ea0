"""Run a model pass by pass: the one place that calls the model's own forward for a pass.

The model's own code does everything but attention: projections, norms, residuals and what else there is. Its attention
layers hand their queries and keys, without positions, to the pass that runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from mesa_lm.attention.cache_layer import filled
from mesa_lm.attention.call import ForwardCall, WantedLogits
from mesa_lm.attention.chunk_store import ChunkStore
from mesa_lm.attention.kernels import Scoring
from mesa_lm.attention.layer_groups import Layers
from mesa_lm.attention.model_pass import ModelPass
from mesa_lm.attention.pass_plan import PassPlan
from mesa_lm.attention.ranks import Ranks
from mesa_lm.errors import ModelError
from mesa_lm.methods.base import Method
from mesa_lm.models.families import family_of
from mesa_lm.models.replacing import replace_method
from mesa_lm.models.rotary_modules import rotary_modules
from mesa_lm.models.tested_versions import NEWEST_TESTED, OLDEST_TESTED

ATTENTION = "mesa_lm"  # the name under which transformers knows our attention


class _Running(NamedTuple):
    """The pass that runs, and what its layers need to know of it.

    Attributes:
        model_pass: The pass.
        fused: Whether fused kernels may compute it.
        positions: Where the model's own rotary module brings queries and keys to; None: nowhere.
        served: The layers whose attention it has served.
    """

    model_pass: ModelPass
    fused: bool
    positions: Tensor | None
    served: list[int]


# Not every model hands keywords down to its attention, so the attention function finds the pass here.
_running: ContextVar[_Running] = ContextVar("running pass")


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention function that transformers calls with unrotated states, (batch, heads, len, head_dim)."""
    running = _running.get()
    scale = kwargs.get("scaling")
    scoring = Scoring(query.shape[-1] ** -0.5 if scale is None else scale, kwargs.get("softcap"), running.fused)
    layer = module.layer_idx
    assert isinstance(layer, int)
    output = _attend_as_asked(running, layer, query, key, value, scoring)
    return output.transpose(1, 2).contiguous(), None


def _attend(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """What the functions of `attention_forwards` call; shapes as in `ModelPass.attend`."""
    return _attend_as_asked(_running.get(), layer, query, key, value, Scoring(scale))


def _attend_as_asked(
    running: _Running, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring
) -> Tensor:
    """Run a layer of a pass; under autocast in its dtype, to which torch's own attention converts its input as well."""
    model_pass, device = running.model_pass, query.device.type
    running.served.append(layer)
    dtype = autocast_dtype(device)
    if dtype is None:
        return model_pass.attend(layer, query, key, value, scoring)
    with torch.autocast(device, enabled=False):
        return model_pass.attend(layer, query.to(dtype), key.to(dtype), value.to(dtype), scoring)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return the dtype of autocast on a kind of device, None where it is off or unknown, as for weights on disk."""
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def _no_mask(*args: Any, **kwargs: Any) -> Tensor:
    """Stand in for a mask: passes have no padding and see to what is seen; some models need a tensor."""
    return torch.zeros(1, 1, 1, 1)


def _rotation(
    own: Callable[..., tuple[Tensor, Tensor]], states: Tensor, position_ids: Any = None, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    """Stand in for a rotary module's forward, `own`: the angles of the pass's positions, or none at all.

    Without positions it is cos = 1 and sin = 0 for every position and component. One component stands for all: models
    that rotate part of a head split it by this width or broadcast it.
    """
    positions = _running.get().positions
    if positions is None:
        return states.new_ones(1, 1, 1), states.new_zeros(1, 1, 1)
    return own(states, positions.to(states.device), *args, **kwargs)


# Passes are Python code through and through: compiled layers leave their graph here.
AttentionInterface.register(ATTENTION, torch.compiler.disable(_attention))
AttentionMaskInterface.register(ATTENTION, _no_mask)


class PassRunner:
    """Runs the passes of calls of one model's forward."""

    def __init__(self, model: PreTrainedModel, layers: Layers, attention: list[nn.Module]) -> None:
        """Look at a model; it is changed only while passes run.

        Args:
            model: Of a supported type.
            layers: Its layers.
            attention: The attention module of each layer.
        """
        self._model, self._layers, self._attention, self._family = model, layers, attention, family_of(model.config)
        self._rotary_forwards = [(module, module.forward) for module in rotary_modules(model)]
        # Attention modules whose forward is replaced do not rotate.
        self._goes_through_interface = self._family.attention_forward is None
        self._mask = _no_mask()
        self._configs = list({id(c): c for m in model.modules() if (c := getattr(m, "config", None))}.values())

    def run(
        self,
        call: ForwardCall,
        method: Method,
        forward: Callable[..., Any],
        store: ChunkStore | None = None,
        ranks: Ranks | None = None,
        is_offloaded: bool = False,
        before_pass: Callable[[Tensor], None] = lambda columns: None,
    ) -> CausalLMOutputWithPast:
        """Compute logits and cache of a call.

        Args:
            call: The call.
            method: Bound to the model.
            forward: The model's own; takes logits_to_keep.
            store: Of middle chunks that prompts may share; None: none.
            ranks: The processes that share the prompts; None: there are none.
            is_offloaded: Whether a new cache lies in the host's memory.
            before_pass: Called before every pass with the (rows, len) input columns of its tokens.

        Raises:
            ModelError: The mask, the positions or the cache are of a kind that cannot be followed, or a layer's
                attention did not run through here.
        """
        # Plain matrix products where the user asked for them.
        fused = self._model.config._attn_implementation != "eager"
        with torch.no_grad(), self._own_attention():
            wanted = WantedLogits(call)
            plan = PassPlan(call, wanted, method, self._layers, store, ranks, is_offloaded)
            logits: Tensor | None = None
            for planned in plan.passes():
                before_pass(planned.columns)
                if planned.is_whole:
                    logits = self._run_pass(planned.model_pass, fused, forward, **call.whole())
                    continue
                rows, columns = planned.rows, planned.columns
                tokens, kept = call.part(rows, columns), wanted.of(columns)
                output = self._run_pass(planned.model_pass, fused, forward, **tokens, logits_to_keep=kept)
                wanted.put(rows, columns, output)
            if plan.is_scattered:
                assert ranks is not None
                wanted.gather(plan.ran_alone, ranks.rank == 0, ranks.add_up)
            if logits is None:
                logits = wanted.result()
        # As in transformers, a cache that is given is filled, whether or not it is asked for in return.
        held = filled(call.cache, plan.cache, method) if call.use_cache or call.cache is not None else None
        return CausalLMOutputWithPast(logits=logits, past_key_values=held if call.use_cache else None)

    def _run_pass(self, model_pass: ModelPass, fused: bool, forward: Callable[..., Any], **arguments: Any) -> Tensor:
        """Run a pass through the model and return its logits."""
        positions = None
        if self._goes_through_interface:
            device = self._model.device
            positions = None if model_pass.positions is None else model_pass.positions.to(device)
            if self._mask.device != device:
                self._mask = self._mask.to(device)
            # A mask of four dimensions is taken as it is; without one, transformers looks for packed sequences.
            arguments["attention_mask"] = self._mask
        model_pass.is_rotated = positions is not None
        running = _Running(model_pass, fused, positions, [])
        token = _running.set(running)
        try:
            output = forward(**arguments, use_cache=False, return_dict=True)
        finally:
            _running.reset(token)
        self._check_served(running.served)
        model_pass.finish()
        logits: Tensor = output.logits
        return logits

    def _check_served(self, served: list[int]) -> None:
        """Check that a pass went through every layer once: a layer that attends elsewhere has no positions.

        Raises:
            ModelError: It did not.
        """
        wrong = [layer for layer in range(len(self._attention)) if served.count(layer) != 1]
        if wrong:
            raise ModelError(
                f"transformers {transformers.__version__} does not run model type {self._model.config.model_type!r} as "
                f"mesa-lm needs it: the attention of layers {wrong} did not run exactly once in a pass; use "
                f"transformers {OLDEST_TESTED} to {NEWEST_TESTED}, or method 'origin'"
            )

    @contextmanager
    def _own_attention(self) -> Iterator[None]:
        """Let the model's attention layers call attention of ours, with queries and keys without positions."""
        family, base = self._family, self._model.base_model
        with ExitStack() as undo:
            for config in self._configs:
                undo.callback(setattr, config, "_attn_implementation", config._attn_implementation)
                config._attn_implementation = ATTENTION
            for module, own in self._rotary_forwards:
                replace_method(module, "forward", functools.partial(_rotation, own), undo)
            if family.bias_method is not None and hasattr(base, family.bias_method):
                replace_method(base, family.bias_method, _no_mask, undo)
            if family.attention_forward is not None:
                for layer, module in enumerate(self._attention):
                    attend = functools.partial(torch.compiler.disable(_attend), layer)
                    forward = functools.partial(family.attention_forward, module, attend)
                    replace_method(module, "forward", forward, undo)
            yield
