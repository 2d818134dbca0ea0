"""How many kernels a method launches: counted on tensors without values, so any model and length takes seconds.

The model lies on torch's meta device, which knows shapes and dtypes alone; the engine takes there the kernels that it
takes on CUDA. Launches decide the time of decoding on a GPU, and can be counted exactly without one.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from mesa_lm.methods.base import Method
from mesa_lm.models.attach import extrapolate

_FEW, _MANY = 1, 2  # layers of the two models, whose difference is what a layer takes
_SETTLING = 2  # decoded tokens before the one that is counted


@dataclass(slots=True)
class Calls:
    """What some calls of a model's forward launch.

    Attributes:
        kernels: Kernels: operations that return tensors, other than views and allocations, those on the host's own
            tensors included.
        synchronisations: How often the host waits for a value of the device.
        copies: Copies from the host to the device.
    """

    kernels: int = 0
    synchronisations: int = 0
    copies: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedRun:
    """Calls of a prefill and of one decoded token; a model of n layers takes fixed + n * layer calls.

    Attributes:
        prefill_layer_calls: Kernels of a layer.
        prefill_fixed_calls: Kernels outside the layers.
        prefill_wait_calls: Synchronisations with the host.
        prefill_copy_calls: Copies to the device.
        decode_layer_calls: As for the prefill, of one token, like those that follow.
        decode_fixed_calls: Kernels outside the layers.
        decode_wait_calls: Synchronisations with the host.
        decode_copy_calls: Copies to the device.
    """

    prefill_layer_calls: float
    prefill_fixed_calls: float
    prefill_wait_calls: int
    prefill_copy_calls: int
    decode_layer_calls: float
    decode_fixed_calls: float
    decode_wait_calls: int
    decode_copy_calls: int


def count_run(config: Any, method: Method | None, dtype: str, batch: int, length: int) -> CountedRun:
    """Count the calls of a prefill, logits of the last token alone, and of a decoded token after it.

    Args:
        config: Of the model; its number of layers does not matter.
        method: Bound to the model; None: transformers alone.
        dtype: Name of a torch dtype.
        batch: Number of prompts.
        length: Tokens of each.
    """
    few, many = (_prefill_and_decode(config, method, dtype, batch, length, layers) for layers in (_FEW, _MANY))
    (prefill_layer, prefill_fixed), (decode_layer, decode_fixed) = (
        _by_layer(one.kernels, other.kernels) for one, other in zip(few, many, strict=True)
    )
    prefill, decode = many
    return CountedRun(
        prefill_layer_calls=prefill_layer,
        prefill_fixed_calls=prefill_fixed,
        prefill_wait_calls=prefill.synchronisations,
        prefill_copy_calls=prefill.copies,
        decode_layer_calls=decode_layer,
        decode_fixed_calls=decode_fixed,
        decode_wait_calls=decode.synchronisations,
        decode_copy_calls=decode.copies,
    )


def _by_layer(few: int, many: int) -> tuple[float, float]:
    """Return the kernels per layer and the others."""
    per_layer = (many - few) / (_MANY - _FEW)
    return per_layer, few - _FEW * per_layer


def _prefill_and_decode(
    config: Any, method: Method | None, dtype: str, batch: int, length: int, layers: int
) -> tuple[Calls, Calls]:
    """Return the calls of a prefill and of one decoded token."""
    values = config.to_dict()
    if values.get("layer_types"):
        values["layer_types"] = (values["layer_types"] * layers)[:layers]
    shortened = type(config).from_dict({**values, "num_hidden_layers": layers})
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(shortened, dtype=getattr(torch, dtype))
        prompts, token = torch.zeros(batch, length, dtype=torch.long), torch.zeros(batch, 1, dtype=torch.long)
    model.eval()
    with nullcontext() if method is None else extrapolate(model, method), torch.no_grad():
        prefill, output = _counted(partial(model, prompts, use_cache=True, logits_to_keep=1))
        for _ in range(_SETTLING + 1):
            cache = output.past_key_values
            decode, output = _counted(partial(model, token, past_key_values=cache, use_cache=True))
    return prefill, decode


def _counted(run: Callable[[], Any]) -> tuple[Calls, Any]:
    calls = Calls()
    with _OneAttentionKernel(calls), _Counter(calls):
        return calls, run()


class _Counter(TorchDispatchMode):
    """Counts what reaches the device."""

    def __init__(self, calls: Calls) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls = calls

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count an operation and carry it out."""
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            self._calls.synchronisations += 1
            return 1  # there is no value; what depends on it may go either way
        if func is torch.ops.aten.nonzero.default and args[0].is_meta:
            self._calls.synchronisations += 1
            self._calls.kernels += 1
            return args[0].new_empty(args[0].numel(), args[0].ndim, dtype=torch.long)  # as many as there may be
        result = func(*args, **(kwargs or {}))
        made = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
        if made and _is_launch(func):
            self._calls.kernels += 1
            given = (tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor))
            from_host = any(not tensor.is_meta and tensor.ndim > 0 for tensor in given)
            self._calls.copies += from_host and any(tensor.is_meta for tensor in made)
        return result


def _is_launch(func: Any) -> bool:
    """Tell whether an operation computes or copies, other than a view or an allocation."""
    returns = func._schema.returns
    is_view = bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
    return not is_view and not func._schema.name.startswith(("aten::empty", "aten::new_empty", "aten::_unsafe_view"))


class _OneAttentionKernel(TorchFunctionMode):
    """Counts torch's attention as one kernel, which it is on CUDA; a meta device knows it only as matrix products."""

    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self._calls = calls

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count attention; carry out everything else."""
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self._calls.kernels += 1
        # Returned as its kernels do: (batch, len, heads, head_dim) in memory.
        return torch.empty_like(args[0].transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
