"""A slow reference for every model family: the family's own float64 code, with attention over explicit pairs.

Nothing of mesa_lm is used. Rotary families rotate each query, by their own function, once for every key, by that
pair's distance; ALiBi families get a woven bias in place of the one they build themselves.
"""

import copy
import math
import sys
from contextlib import contextmanager
from unittest.mock import patch

import torch
import transformers
from oracles import Pairs
from torch import Tensor

INTERLEAVED_ANGLES = ("cohere", "cohere2")


def family_logits(
    model: torch.nn.Module, ids: Tensor, pairs: Pairs, train_length: int, factor: float | None = None
) -> Tensor:
    """Run a model over explicit pairs.

    Args:
        model: The transformers model.
        ids: (n,) token ids.
        pairs: For these tokens; its frequencies apply to layers without a window of their own.
        train_length: Sliding windows of up to this length stay as the model has them.
        factor: Of cosines and sines in the other layers; None: the model's.

    Returns:
        (n, vocab) logits in float64.
    """
    own = copy.deepcopy(model).double()
    own.config._experts_implementation = "eager"  # the fused one knows no float64
    alibi = own.config.model_type in ("mpt", "bloom") or getattr(own.config, "alibi", False)
    with torch.no_grad(), _biased(own, pairs) if alibi else _rotated(own, pairs, train_length, factor):
        # Some of these models build their bias only for a mask.
        return own(ids[None], attention_mask=torch.ones(1, len(ids)), use_cache=False).logits[0]


@contextmanager
def _biased(model, pairs):
    """Put -slope * distance into the score of each pair, and the query's factor into its projection."""
    kind, config = model.config.model_type, model.config
    heads, n = config.num_attention_heads, len(pairs.distance)
    if kind == "mpt":
        # attention.py of mosaicml/mpt-7b: halving slopes for the next power of two, odd places first.
        full = 2 ** math.ceil(math.log2(heads))
        slopes = [2 ** (-8 * (i + 1) / full) for i in range(full)]
        slopes = slopes if full == heads else (slopes[1::2] + slopes[::2])[:heads]
    else:
        # arXiv 2108.12409 and its published code: the power of two below, then every other slope of twice as many.
        low = 2 ** math.floor(math.log2(heads))
        slopes = [2 ** (-8 * (i + 1) / low) for i in range(low)]
        slopes += [2 ** (-4 * (2 * i + 1) / low) for i in range(heads - low)]
    slopes = torch.tensor(slopes, dtype=torch.float64)
    if kind == "falcon":
        slopes = slopes.bfloat16().double()
    bias = -slopes[:, None, None] * pairs.distance
    bias = bias.masked_fill(~pairs.visible, torch.finfo(torch.float64).min / 8)
    factors = pairs.scale if pairs.scale.ndim == 2 else pairs.scale[:, None].expand(n, n)

    def scaled(module, args, output):
        # Only factors of queries are used with ALiBi here, or such that are products of a query's and a key's.
        root = factors.diagonal()
        key = torch.ones(n) if pairs.scale.ndim == 1 else root.sqrt()
        query = root if pairs.scale.ndim == 1 else root.sqrt()
        query, key = query[None, :, None], key[None, :, None].double()
        width = config.hidden_size // heads
        if kind == "mpt":
            parts = list(output.chunk(3, dim=-1))
            return torch.cat([parts[0] * query, parts[1] * key, parts[2]], dim=-1)
        parts = output.view(1, n, -1, 3, width).clone()
        parts[..., 0, :] *= query[..., None]
        parts[..., 1, :] *= key[..., None]
        return parts.view(output.shape)

    name = "Wqkv" if kind == "mpt" else "query_key_value"
    hooks = [m.register_forward_hook(scaled) for path, m in model.named_modules() if path.endswith(name)]
    build = "build_mpt_alibi_tensor" if kind == "mpt" else "build_alibi_tensor"
    target = sys.modules[type(model).__module__] if kind == "falcon" else model.base_model
    try:
        with patch.object(target, build, lambda *args, **kwargs: bias):
            yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _rotated(model, pairs, train_length, given_factor):
    """Compute the attention of each pair with queries turned by its distance."""
    modeling, config = sys.modules[type(model).__module__], model.config
    turn = modeling.apply_rotary_pos_emb
    rotary = next((m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")), None)
    state = {"turned": 0, "layer": -1}
    n = len(pairs.distance)
    causal = torch.arange(n)[:, None] - torch.arange(n)

    def keep(query, key, *args, **kwargs):
        """Stand in for the family's rotation; remember how many components it would have turned."""
        state["turned"] = query.shape[-1]
        return (query, key) if config.model_type != "gptj" else query

    def layer_pairs(layer, window):
        if window is None or window > train_length:
            return pairs
        visible = (causal >= 0) & (causal < window)
        return Pairs(visible, causal.double(), torch.ones(n, dtype=torch.float64))

    def table(distance, own, layer):
        """Cosines and sines for each pair, (n, n, rotary_dim) in the layout of the family's module."""
        frequency, factor = own.frequency, 1.0
        if config.model_type == "gptj":
            power = torch.arange(0, config.rotary_dim, 2, dtype=torch.float64) / config.rotary_dim
            frequency = 10000.0**-power if frequency is None else frequency
        else:
            kind = f"{config.layer_types[layer]}_" if isinstance(rotary.rope_type, dict) else ""
            frequency = getattr(rotary, f"{kind}inv_freq").double() if frequency is None else frequency
            factor = getattr(rotary, f"{kind}attention_scaling")
        if own is pairs and given_factor is not None:
            factor = given_factor
        angle = (distance if distance.ndim == 3 else distance[..., None]) * (
            frequency if frequency.ndim == 1 else frequency[: len(distance), None]
        )
        if config.model_type == "gptj":
            return angle.cos() * factor, angle.sin() * factor
        repeated = angle.repeat_interleave(2, -1) if config.model_type in INTERLEAVED_ANGLES else angle.repeat(1, 1, 2)
        return repeated.cos() * factor, repeated.sin() * factor

    def turned(states, cos, sin):
        """Turn (n or 1, heads, n, head_dim)."""
        if config.model_type == "gptj":
            end = config.rotary_dim
            rotated = turn(states[..., :end].transpose(1, 2), sin, cos).transpose(1, 2)
        else:
            end = state["turned"]
            rotated = turn(states[..., :end], states[..., :end], cos, sin)[0]
        return torch.cat([rotated, states[..., end:]], dim=-1)

    def attention(layer, query, key, value, scaling, window=None, softcap=None):
        """Return (1, n, heads, head_dim)."""
        own = layer_pairs(layer, window)
        key, value = (s.repeat_interleave(query.shape[1] // s.shape[1], dim=1) for s in (key, value))
        if state["turned"]:
            queries = query[0].transpose(0, 1)[:, :, None].expand(-1, -1, n, -1)  # (n, heads, n, head_dim)
            queries = turned(queries, *table(own.distance, own, layer))
            key = turned(key, *table(own.distance[:1] * 0, own, layer))
        else:
            queries = query[0].transpose(0, 1)[:, :, None]
        scores = (queries * key).sum(-1) * scaling  # (n, heads, n)
        scores = scores * (own.scale[:, None, None] if own.scale.ndim == 1 else own.scale[:, None])
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~own.visible[:, None], -torch.inf)
        state["turned"] = 0
        return torch.einsum("qhk,hkd->qhd", scores.softmax(-1), value[0])[None]

    def called(module, query, key, value, mask, **kwargs):
        scaling = kwargs.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        window, softcap = kwargs.get("sliding_window"), kwargs.get("softcap")
        return attention(module.layer_idx, query, key, value, scaling, window, softcap), None

    def falcon(query, key, value, **kwargs):
        state["layer"] += 1
        out = attention(state["layer"], query, key, value, query.shape[-1] ** -0.5)
        return out.transpose(1, 2)

    def gptj(module, query, key, value, mask=None):
        out = attention(module.layer_idx, query, key, value, query.shape[-1] ** -0.5)
        return out.transpose(1, 2), None

    transformers.AttentionInterface.register("pairs", called)
    before = config._attn_implementation
    patches = [patch.object(modeling, "apply_rotary_pos_emb", keep)]
    if config.model_type == "falcon":
        patches.append(patch("torch.nn.functional.scaled_dot_product_attention", falcon))
    elif config.model_type == "gptj":
        patches.append(patch.object(modeling.GPTJAttention, "_attn", gptj))
        longer = modeling.create_sinusoidal_positions(n, config.rotary_dim)
        patches += [
            patch.object(m, "embed_positions", longer) for m in model.modules() if hasattr(m, "embed_positions")
        ]
    else:
        config._attn_implementation = "pairs"
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()
        config._attn_implementation = before
