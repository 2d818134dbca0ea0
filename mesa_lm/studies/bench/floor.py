"""The least time that a prefill in chunks can take: its matrix products and attention calls, and nothing else."""

from collections import Counter
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesa_lm.attention.pass_plan import PASS_TOKENS
from mesa_lm.methods.base import Method
from mesa_lm.studies.bench.timing import now


class Attention(NamedTuple):
    """An attention call: sequences, queries and keys of each, and whether the queries are causal."""

    rows: int
    q_len: int
    kv_len: int
    causal: bool

    @property
    def pairs(self) -> int:
        """Scores that the call needs, per head."""
        return self.rows * (self.q_len * (self.q_len + 1) // 2 if self.causal else self.q_len * self.kv_len)


class Floor(NamedTuple):
    """Times and multiply-adds of a prefill's matrix products and attention calls.

    Attributes:
        linear_s: Seconds of the matrix products.
        attention_s: Seconds of the attention calls.
        linear_macs: Multiply-adds of the matrix products.
        attention_macs: Multiply-adds of the attention calls, half of a square for causal ones.
    """

    linear_s: float
    attention_s: float
    linear_macs: int
    attention_macs: int

    @property
    def seconds(self) -> float:
        """Both together."""
        return self.linear_s + self.attention_s


def measure_floor(model: PreTrainedModel, method: Method, batch: int, length: int) -> Floor | None:
    """Time what a prefill cannot do without, at its shapes, each distinct one once.

    Args:
        model: The model; its layers are taken to be equal.
        method: Bound to the model.
        batch: Number of prompts.
        length: Tokens of each.

    Returns:
        The floor; None if the method does not cut prompts of this length into chunks.
    """
    layout = method.layout(length)
    if layout is None:
        return None
    last = length - layout.last_start
    tokens, calls = Counter([batch * layout.first, batch * last]), Counter[Attention]()
    calls[Attention(batch, layout.first, layout.first, True)] += 1
    calls[Attention(batch, last, last, True)] += 1
    calls[Attention(batch, last, layout.last_start, False)] += 1
    for block in layout.blocks(PASS_TOKENS // batch):
        rows = batch * block.chunks
        tokens[rows * block.width] += 1
        calls[Attention(rows, block.width, block.width, True)] += 1
        calls[Attention(rows, block.width, layout.seen, False)] += 1
    layers = int(model.config.get_text_config().num_hidden_layers)
    linears = [module for module in model.get_decoder().modules() if isinstance(module, nn.Linear)]
    one_layer = linears[: len(linears) // layers]
    with torch.no_grad():
        linear_s = sum(count * _linear_s(model, one_layer, size) for size, count in tokens.items())
        attention_s = sum(count * _attention_s(model, call) for call, count in calls.items())
    weights = sum(module.weight.numel() for module in one_layer)
    heads, head_dim = _heads(model)[::2]
    return Floor(
        linear_s * layers,
        attention_s * layers,
        sum(tokens.elements()) * weights * layers,
        2 * sum(call.pairs for call in calls.elements()) * heads * head_dim * layers,
    )


def _heads(model: PreTrainedModel) -> tuple[int, int, int]:
    config = model.config.get_text_config()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_attention_heads, config.num_key_value_heads, head_dim


def _linear_s(model: PreTrainedModel, linears: list[nn.Linear], tokens: int) -> float:
    """Time the products of one layer for so many tokens, in seconds."""
    inputs = {module.in_features: _random(model, tokens, module.in_features) for module in linears}
    start = now(model)
    for module in linears:
        F.linear(inputs[module.in_features], module.weight, module.bias)
    return now(model) - start


def _attention_s(model: PreTrainedModel, call: Attention) -> float:
    """Time one attention call, in seconds."""
    heads, kv_heads, head_dim = _heads(model)
    query = _random(model, call.rows, heads, call.q_len, head_dim)
    key, value = (_random(model, call.rows, kv_heads, call.kv_len, head_dim) for _ in range(2))
    start = now(model)
    F.scaled_dot_product_attention(query, key, value, is_causal=call.causal, enable_gqa=heads != kv_heads)
    return now(model) - start


def _random(model: PreTrainedModel, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=model.dtype, device=model.device)
