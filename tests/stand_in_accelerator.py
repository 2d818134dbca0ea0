"""A stand-in for GPUs: tensors that compute on the CPU, say that they are on `cuda:0` or another, and obey its rules.

Refused is what CUDA refuses: operations on tensors of two devices, the CPU's attention kernel, and inputs that CUDA's
attention kernels do not take. Counted are waits of the host for a value, and copies to the device.
"""

from collections import Counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda:0")
ATEN = torch.ops.aten
WAITS = {
    "item",
    "tolist",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "nonzero",
    "unique",
    "equal",
    "masked_select",
}
TENSORS = {"T", "mT", "H", "mH", "data", "real", "imag"}  # attributes that are tensors
# Functions that take indices, or what is to be copied, from the host too.
TAKES_HOST = {"__getitem__", "__setitem__", "copy_"}


class OnDevice(torch.Tensor):
    """A tensor that says that it is on a device."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device = DEVICE) -> "OnDevice":
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=device
        )

    def __init__(self, inner: torch.Tensor, device: torch.device = DEVICE) -> None:
        self.host = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} is used outside the stand-in")


class StandIn(TorchFunctionMode):
    """Carries out operations on `OnDevice` tensors.

    Attributes:
        counts: waits, copies to a device, moves from one to another, and calls of the attention kernels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__":
            attribute = func.__self__.__name__
            on_device = isinstance(args[0], OnDevice)
            return OnDevice(func(args[0].host), args[0].device) if on_device and attribute in TENSORS else func(*args)
        if name in ("size", "dim", "stride", "is_contiguous", "requires_grad_", "is_floating_point", "element_size"):
            return func(*args, **kwargs)
        if name in ("to", "cpu", "cuda", "type"):
            return self._moved(name, args, kwargs)
        if name in ("__getitem__", "__setitem__"):
            args = tree_map(self._bounds_read, args)
        wanted = kwargs.get("device")
        device = None if wanted is None else indexed(wanted)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        if not there and (device is None or device.type == "cpu"):
            return func(*args, **kwargs)
        if device is not None:
            kwargs["device"] = "cpu"
        self._check_placement(name, args, tensors, there)
        if name in WAITS and there:
            self.counts["waits"] += 1
        plain_args, plain_kwargs = tree_map(on_host, (args, kwargs))
        if isinstance(func, torch._ops.OpOverloadPacket) and "scaled_dot_product" in str(func):
            result = self._attention(str(func), *plain_args, **plain_kwargs)
        else:
            result = func(*plain_args, **plain_kwargs)
        known = {id(on_host(tensor)): tensor for tensor in tensors}
        device = device or there[0].device

        def placed(value: Any) -> Any:
            if not _is_new(value) or device.type != "cuda":
                return value
            return known[id(value)] if id(value) in known else OnDevice(value, device)

        return tree_map(placed, result)

    def _bounds_read(self, value: Any) -> Any:
        """Return a slice with numbers for bounds, which the host waits for if they are on a device."""
        if not isinstance(value, slice) or not any(isinstance(bound, OnDevice) for bound in (value.start, value.stop)):
            return value
        self.counts["waits"] += 1
        return slice(
            *(int(on_host(bound)) if isinstance(bound, OnDevice) else bound for bound in (value.start, value.stop))
        )

    def _check_placement(self, name: str, args: Any, tensors: list[Any], there: list[Any]) -> None:
        """Refuse tensors of several devices, but for scalars and what CUDA takes from the host."""
        if len({tensor.device for tensor in there if tensor.ndim > 0 or name in TAKES_HOST}) > 1:
            if name != "copy_":
                raise RuntimeError(f"{name} is given tensors on two devices: {[tensor.device for tensor in there]}")
            self.counts["moves"] += 1
        here = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.ndim > 0]
        if not here or not there:
            return
        if name not in TAKES_HOST or not isinstance(args[0], OnDevice):
            raise RuntimeError(f"{name} is given tensors on two devices: {[tuple(tensor.shape) for tensor in tensors]}")
        self.counts["copies"] += 1

    def _moved(self, name: str, args: Any, kwargs: Any) -> torch.Tensor:
        """Carry out `to` and its kin."""
        device = {"cpu": torch.device("cpu"), "cuda": DEVICE}.get(name)
        dtype = kwargs.get("dtype")
        for value in (*args[1:], kwargs.get("device")):
            if isinstance(value, torch.Tensor):
                device, dtype = value.device, value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, str | torch.device):
                device = indexed(value)
        given = args[0]
        inner = on_host(given)
        changed = inner if dtype is None else inner.to(dtype)
        device = given.device if device is None else device
        if device == given.device:
            return given if changed is inner else OnDevice(changed, device) if device.type == "cuda" else changed
        self.counts["waits" if device.type == "cpu" else "copies" if given.device.type == "cpu" else "moves"] += 1
        return OnDevice(changed.clone(), device) if device.type == "cuda" else changed.clone()

    def _attention(self, kernel: str, query: Any, key: Any, value: Any, *args: Any, scale: float) -> Any:
        """Compute what one of CUDA's attention kernels does, if it takes this."""
        assert query.dtype == key.dtype == value.dtype and query.shape[-1] % 8 == 0, (kernel, query.shape)
        assert all(states.stride(-1) == 1 for states in (query, key, value)), "components of a head lie side by side"
        cpu = ATEN._scaled_dot_product_flash_attention_for_cpu
        if kernel.endswith("_scaled_dot_product_flash_attention"):
            self.counts["flash"] += 1
            causal = args[1]
            assert query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] <= 256
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            bias = None
        else:
            assert kernel.endswith("_scaled_dot_product_efficient_attention"), f"{kernel} does not run on CUDA"
            self.counts["efficient"] += 1
            bias, with_lse, _, causal = args
            assert with_lse and query.shape[1] == key.shape[1]
            if bias is not None:
                assert bias.shape == (*query.shape[:3], key.shape[2]) and bias.dtype == query.dtype
                assert all(step % 8 == 0 for step in bias.stride()[:-1]), "rows of a mask are aligned"
                bias = bias[0, 0].contiguous()
        assert not causal or query.shape[2] == key.shape[2]
        output, lse = cpu(query, key, value, 0.0, causal, attn_mask=bias, scale=scale)
        if kernel.endswith("efficient_attention"):
            lse = torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32), value=torch.nan)
        return output, lse.float(), None, None


def on_device(model: torch.nn.Module, device: torch.device = DEVICE) -> torch.nn.Module:
    """Move a model's parameters and buffers to a device, in place."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = OnDevice(on_host(parameter).data, device)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = OnDevice(on_host(buffer), device)
    return model


def on_two_devices(model: torch.nn.Module) -> torch.nn.Module:
    """Move a model to the device but for its last layer, which has one of its own, as `device_map` lays it out.

    Its input goes there, as accelerate's hooks have it, and its output back.
    """
    second, last = torch.device("cuda:1"), on_device(model).model.layers[-1]
    on_device(last, second)

    def to(device: torch.device, values: Any) -> Any:
        return tree_map(lambda value: value.to(device) if isinstance(value, torch.Tensor) else value, values)

    last.register_forward_pre_hook(lambda _, args, kwargs: to(second, (args, kwargs)), with_kwargs=True)
    last.register_forward_hook(lambda _, args, output: to(DEVICE, output))
    return model


def indexed(device: Any) -> torch.device:
    """Return a device with its number."""
    device = torch.device(device)
    return torch.device("cuda", 0) if device.type == "cuda" and device.index is None else device


def on_host(value: Any) -> Any:
    """Return what a tensor on the device holds; anything else as it is."""
    return value.host if isinstance(value, OnDevice) else value


def _is_new(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, OnDevice)
