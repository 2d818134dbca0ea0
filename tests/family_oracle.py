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
    context = _rotated(own, pairs, train_length, factor)
    if alibi:
        context = _biased(own, pairs) if pairs.choose is None else _choosing_biased(own, pairs)
    with torch.no_grad(), context:
        # Some of these models build their bias only for a mask.
        return own(ids[None], attention_mask=torch.ones(1, len(ids)), use_cache=False).logits[0]


def _slopes(config):
    """The slope of each head."""
    kind, heads = config.model_type, config.num_attention_heads
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
    return slopes.bfloat16().double() if kind == "falcon" else slopes


@contextmanager
def _choosing_biased(model, pairs):
    """Let each layer choose: build no bias, and put that of the chosen pairs where the layer has its scores."""
    config, n = model.config, len(pairs.distance)
    slopes = _slopes(config)[:, None, None]
    if config.model_type == "falcon":  # which scales its bias as it does the products
        slopes = slopes / math.sqrt(config.hidden_size // config.num_attention_heads)

    def weights(scores):
        """Return (heads, n, n) attention from the scores without bias, (heads, n, n)."""
        visible, distance = pairs.choose(lambda distance: scores - slopes * distance, lambda given: given)
        return (scores - slopes * distance).masked_fill(~visible, -torch.inf).softmax(-1)

    def softmax(scores, *args, **kwargs):
        return weights(scores.view(-1, n, n)).view(scores.shape)

    def attention(query, key, value, **kwargs):
        return (weights((query @ key.transpose(-1, -2))[0] / math.sqrt(query.shape[-1])) @ value[0])[None]

    nothing = torch.zeros(config.num_attention_heads, 1 if config.model_type == "bloom" else n, n, dtype=torch.float64)
    if config.model_type == "falcon":
        with patch("torch.nn.functional.scaled_dot_product_attention", attention):
            yield
        return
    build = "build_mpt_alibi_tensor" if config.model_type == "mpt" else "build_alibi_tensor"
    with (
        patch.object(model.base_model, build, lambda *args, **kwargs: nothing),
        patch("torch.nn.functional.softmax", softmax),
    ):
        yield


@contextmanager
def _biased(model, pairs):
    """Put -slope * distance into the score of each pair, and the query's factor into its projection."""
    kind, config = model.config.model_type, model.config
    heads, n = config.num_attention_heads, len(pairs.distance)
    bias = -_slopes(config)[:, None, None] * pairs.distance
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
        if own.interpolated:
            whole = own._replace(interpolated=False)
            tables = zip(table(distance.floor(), whole, layer), table(distance.ceil(), whole, layer), strict=True)
            weight = (distance - distance.floor())[..., None]
            return tuple(torch.lerp(low, high, weight) for low, high in tables)
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
        own, rotates = layer_pairs(layer, window), state["turned"] > 0
        key, value = (s.repeat_interleave(query.shape[1] // s.shape[1], dim=1) for s in (key, value))

        def scores_at(distance):
            """Scores of all pairs, (heads, n, n)."""
            distance = torch.as_tensor(distance, dtype=torch.float64)
            distance = distance if distance.ndim == 3 else distance.expand(n, n)
            queries, keys = query[0].transpose(0, 1)[:, :, None], key
            if rotates:
                queries = queries.expand(-1, -1, n, -1)  # (n, heads, n, head_dim)
                queries = turned(queries, *table(distance, own, layer))
                keys = turned(key, *table(distance[:1] * 0, own, layer))
            return ((queries * keys).sum(-1) * scaling).transpose(0, 1)

        def capped(scores):
            return scores if softcap is None else softcap * torch.tanh(scores / softcap)

        visible, distance = own.visible, own.distance
        if own.choose is not None:
            visible, distance = own.choose(scores_at, capped)
        scores = scores_at(distance).transpose(0, 1)  # (n, heads, n)
        scores = capped(scores * (own.scale[:, None, None] if own.scale.ndim == 1 else own.scale[:, None]))
        visible = visible if visible.ndim == 3 else visible[None]
        scores = scores.masked_fill(~visible.transpose(0, 1), -torch.inf)
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
