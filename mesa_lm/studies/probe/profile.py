"""Record hidden states along an input, as means over short blocks of positions.

A block is T/16 tokens and a block starts at position T. Memory: 16 x (length / T) x layers x hidden size float32
numbers for one method, 33 MB for a model of 32 layers of 4096 at 4 T; never the states of all positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesa_lm.errors import ModelError, UsageError
from mesa_lm.methods.base import Method
from mesa_lm.models.attach import extrapolate
from mesa_lm.models.handle import Handle

BLOCKS_PER_LENGTH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Hold the mean hidden states of an input, block by block.

    Args:
        values: (layers, blocks, hidden) float32, the states after each chosen layer.
        layers: Number of each of these layers, from 0.
        starts: First position of each block.
        train_length: T in tokens; one of `starts`.
    """

    values: Tensor
    layers: list[int]
    starts: list[int]
    train_length: int

    @property
    def boundary(self) -> int:
        """The block that starts at T."""
        return self.starts.index(self.train_length)

    def of_layer(self, layer: int) -> "Profile":
        """Return the profile of one layer."""
        index = self.layers.index(layer)
        return replace(self, values=self.values[index : index + 1], layers=[layer])

    def of_dimension(self, layer: int, dimension: int) -> Tensor:
        """Return a dimension's value in each block, (blocks,)."""
        return self.values[self.layers.index(layer), :, dimension]


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return a model's decoder layers, first to last.

    Raises:
        ModelError: The model has no list of as many modules as its config names layers.
    """
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ModelError(
        f"probe: no list of {count} decoder layers found in a model of type {model.config.model_type!r}; "
        "supported are models that keep their layers in one torch.nn.ModuleList"
    )


def chosen_layers(text: str | None, count: int) -> list[int]:
    """Return the layers that `--layers` names.

    Args:
        text: Numbers from 0 on, separated by commas; None: every layer.
        count: Layers of the model.

    Raises:
        UsageError: Something is no number, no layer of the model, or given twice.
    """
    if text is None:
        return list(range(count))
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 9 and int(part) < count for part in parts):
        raise UsageError(f"probe: layers must be numbers from 0 to {count - 1}, separated by commas; found {text!r}")
    numbers = sorted(map(int, parts))
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"probe: each layer may be given once; found {text!r}")
    return numbers


def record(
    model: PreTrainedModel, method: Method, tokens: Sequence[int], layers: Sequence[int], train_length: int
) -> Profile:
    """Run an input once under a method and record its hidden states.

    Args:
        model: Without a method attached.
        method: The method.
        tokens: The input, longer than T.
        layers: Which layers' outputs to record.
        train_length: T in tokens.

    Returns:
        The profile; under every method a state is recorded at its token's position in the input.

    Raises:
        ModelError: The model or its layers are not supported, or T is below 16.
        MethodError: The method does not fit the model.
    """
    if train_length < BLOCKS_PER_LENGTH:
        raise ModelError(
            f"probe: the model's training length must be at least {BLOCKS_PER_LENGTH} tokens; found {train_length}"
        )
    modules = decoder_layers(model)
    width = train_length // BLOCKS_PER_LENGTH
    before = -(-train_length // width)
    block_of = (torch.arange(len(tokens)) - train_length).div(width, rounding_mode="floor") + before
    sizes = block_of.bincount()
    sums = torch.zeros(len(layers), len(sizes), model.config.get_text_config().hidden_size)
    with extrapolate(model, method) as handle:
        hooks = [
            modules[layer].register_forward_hook(_adder(handle, block_of, sums[i])) for i, layer in enumerate(layers)
        ]
        try:
            with torch.no_grad():
                model(torch.tensor([tokens], device=model.device), use_cache=False, logits_to_keep=1)
        finally:
            for hook in hooks:
                hook.remove()
    starts = [max(0, train_length + (block - before) * width) for block in range(len(sizes))]
    return Profile(values=sums / sizes[:, None], layers=list(layers), starts=starts, train_length=train_length)


def _adder(handle: Handle, block_of: Tensor, sums: Tensor) -> Callable[[nn.Module, object, Tensor], None]:
    """Return a forward hook that adds a layer's output to the sums, (blocks, hidden), of its positions' blocks."""

    def add(module: nn.Module, inputs: object, output: Tensor) -> None:
        blocks = block_of if handle.columns is None else block_of[handle.columns.flatten().cpu()]
        sums.index_add_(0, blocks, output.flatten(0, 1).float().cpu())

    return add
