"""Slow, explicit references, written from the paper; nothing of mesa_lm is imported.

`mesa_pairs` says for every query and key, one pair at a time, whether the key is seen, at which distance and with
which factor; `dense_logits` runs a Llama-like model's weights in float64 with such matrices.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import silu


class Pairs(NamedTuple):
    """For every query t (row) and key j (column), or every query."""

    visible: Tensor  # (n, n) bool
    distance: Tensor  # (n, n), or (n, n, head_dim / 2) of every rotated pair
    scale: Tensor  # (n,) or (n, n)
    frequency: Tensor | None = None  # (n, head_dim / 2) rotary frequencies per query; None: the model's
    own_keys: bool = False  # key j is rotated by its own row of `frequency`, at position j, not by its query's
    interpolated: bool = False  # scores at fractions of a distance lie between those at the whole ones, linearly
    choose: "Choose | None" = None  # in each layer, what is visible and at which distance; then the above are not used


# scores(distance) are those of all pairs at one distance, or at a matrix of distances: (heads, n, n), before
# soft-capping, which is the second argument. Returned are what is visible, (heads or 1, n, n) bool, and the distances.
Scores = Callable[[Tensor | float], Tensor]
Choose = Callable[[Scores, Callable[[Tensor], Tensor]], tuple[Tensor, Tensor]]


def stair(distance: int, near: int, width: int) -> int:
    """W(d) of Stair PE, arXiv 2410.15859, section 4."""
    return distance if distance <= near else near + math.ceil((distance - near) / width)


def chunks(n: int, *, T: int, F: int, L: int, M_max: int, C: int | None) -> list[tuple[int, int]]:
    """Start and end of every chunk of a prompt of n > T tokens, first and last included."""
    narrow = []
    if C is not None:
        number, M = divmod(n - L - F, C)
        if M >= M_max:
            narrow = [n - L]
    else:
        Nc, M = divmod(n - L - F, T - F)
        if M < M_max:
            C, number = T - F, Nc
        else:
            C, number = (n - L - F) // (Nc + 1), Nc + 1
    bounds = [0, *(F + i * C for i in range(number + 1)), *narrow, n]
    return list(pairwise(bounds))


def auto_width(n: int, near: int, *, T: int, R: int) -> int:
    """50, or the smallest width that keeps W of the farthest key plus R decoded tokens at most T - 1."""
    width = 50
    while stair(n - 1, near, width) + R > T - 1:
        width += 1
    return width


def mesa_pairs(
    prompt: int,
    total: int,
    *,
    T: int,
    F: int,
    L: int,
    M_max: int,
    N: int,
    R: int,
    C: int | None = None,
    E: int | None = None,
    log_n: bool = True,
    reserve: int = 0,
    weave: str = "stair",
) -> Pairs:
    """Mesa-Extrapolation of a prompt, then decoded token by token up to `total` tokens."""
    visible = torch.zeros(total, total, dtype=torch.bool)
    distance = torch.zeros(total, total, dtype=torch.float64)
    scale = torch.ones(total, dtype=torch.float64)
    woven_at, near = None, N

    def position(j: int) -> float:
        """Position of key j since the last weaving."""
        if woven_at is None or j > woven_at:
            return j
        d = woven_at - j
        if d <= near:
            return j
        if weave == "rerope":
            return woven_at - near
        if weave == "leaky_rerope":
            slope = 1 / E if E else min(1.0, (T - 1 - R - near) / (woven_at - near))
            return woven_at - (near + (d - near) * slope)
        width = E or auto_width(woven_at + 1, near, T=T, R=R)
        if weave == "self_extend":
            return woven_at - (woven_at // width - j // width + near - near // width)
        return woven_at - stair(d, near, width)

    last_start = 0
    if prompt > T:
        pieces = chunks(prompt, T=T, F=F, L=L, M_max=M_max, C=C)
        for start, end in pieces[:-1]:
            for t in range(start, end):
                for j in [*range(min(F, t + 1)), *range(max(start, F), t + 1)]:
                    visible[t, j] = True
                    local_t = t if t < F else F + t - start
                    local_j = j if j < F else F + j - start
                    distance[t, j] = local_t - local_j
        last_start, last_end = pieces[-1]
        woven_at, near = prompt - 1, max(N, last_end - last_start)
    for t in range(last_start, total):
        if t >= prompt:
            crossing = woven_at is None and t + 1 > T - reserve
            if crossing or (woven_at is not None and t - woven_at >= R):
                woven_at = t
        for j in range(t + 1):
            visible[t, j] = True
            distance[t, j] = t - position(j)
        if log_n:
            scale[t] = max(1.0, math.log(t + 1) / math.log(T))
    return Pairs(visible, distance, scale)


def dense_pairs(total: int, rule: Callable[[int, int], float | None], scale: Callable[[int], float]) -> Pairs:
    """Pairs of a method whose queries see by index: rule(t, j) is the distance, None for a key not seen."""
    visible = torch.zeros(total, total, dtype=torch.bool)
    distance = torch.zeros(total, total, dtype=torch.float64)
    for t in range(total):
        for j in range(t + 1):
            found = rule(t, j)
            if found is not None:
                visible[t, j], distance[t, j] = True, found
    return Pairs(visible, distance, torch.tensor([scale(t) for t in range(total)], dtype=torch.float64))


def log_n(T: int, on: bool) -> Callable[[int], float]:
    """Entropy-invariant scaling of query t."""
    return lambda t: max(1.0, math.log(t + 1) / math.log(T)) if on else 1.0


def rerope_pairs(prompt: int, total: int, *, T: int, w: int, logn: bool) -> Pairs:
    """kexue.fm/archives/9708: distance min(t - j, w)."""
    return dense_pairs(total, lambda t, j: min(t - j, w), log_n(T, logn))


def leaky_pairs(prompt: int, total: int, *, T: int, w: int, k: float | None, logn: bool) -> Pairs:
    """Distance w + (d - w) / k from w on; without k, 1/k = (T - w) / (I - w) for a prompt of I tokens."""
    slope = (1 / k) if k else min(1.0, (T - w) / max(1e-9, prompt - w)) if prompt > w else 1.0
    return dense_pairs(total, lambda t, j: t - j if t - j < w else w + (t - j - w) * slope, log_n(T, logn))


def stair_pairs(prompt: int, total: int, *, T: int, N: int, E: int, logn: bool) -> Pairs:
    """Stair PE for every query."""
    return dense_pairs(total, lambda t, j: stair(t - j, N, E), log_n(T, logn))


def self_extend_pairs(prompt: int, total: int, *, T: int, G: int, w: int, exact: bool, logn: bool) -> Pairs:
    """Distance t//G - j//G + w - w/G (or w//G) from w on."""
    offset = w - (w / G if exact else w // G)
    return dense_pairs(total, lambda t, j: t - j if t - j < w else t // G - j // G + offset, log_n(T, logn))


def lm_infinite_pairs(prompt: int, total: int, *, L: int, G: int, D: int) -> Pairs:
    """The last L keys at their distance, the first G at distance D, at most the input's length - 1."""

    def rule(t: int, j: int) -> int | None:
        if t - j < L:
            return t - j
        return min(D, (prompt if t < prompt else t + 1) - 1) if j < G else None

    return dense_pairs(total, rule, lambda t: 1.0)


def streaming_pairs(prompt: int, total: int, *, S: int, R: int) -> Pairs:
    """The first S and the last R + 1 keys; slots of the cache are positions."""

    def rule(t: int, j: int) -> int | None:
        if t <= S + R or j >= t - R:
            return t - j
        return S + R - j if j < S else None

    return dense_pairs(total, rule, lambda t: 1.0)


def streaming_turns_pairs(turns: list[int], *, S: int, R: int, M: int) -> Pairs:
    """Turns of so many tokens (one: a decoded token, which evicts nothing); slots of the cache are positions."""
    total = sum(turns)
    visible = torch.zeros(total, total, dtype=torch.bool)
    distance = torch.zeros(total, total, dtype=torch.float64)
    kept: list[int] = []
    for turn in turns:
        if turn > 1 and kept and len(kept) + turn + M > S + R:
            recent = max(0, R - turn - M)
            kept = kept[:S] + kept[len(kept) - recent :]
        first = sum(turns) - total
        for t in range(first, first + turn):
            kept.append(t)
            for slot, j in enumerate(kept):
                visible[t, j], distance[t, j] = True, len(kept) - 1 - slot
        total -= turn
    return Pairs(visible, distance, torch.ones(sum(turns), dtype=torch.float64))


def dual_chunk_pairs(prompt: int, total: int, *, T: int, C: int, w: int, mscale: bool) -> Pairs:
    """Positions within chunks of C - w tokens; query positions of at most C towards earlier chunks."""
    L = C - w

    def rule(t: int, j: int) -> int:
        apart = t // L - j // L
        query = t % L if apart == 0 else min(t % L + L, C) if apart == 1 else min(2 * L - 1, C)
        return query - j % L

    def m(t: int) -> float:
        length = prompt if t < prompt else t + 1
        return 1 + 0.05 * math.log(length / T) if mscale and length > T else 1.0

    pairs = dense_pairs(total, rule, m)
    return pairs._replace(scale=pairs.scale[:, None] * pairs.scale[None, :])


def pieces_of(prompt: int, total: int, longest: int, within: int) -> list[tuple[int, int]]:
    """A prompt but for its last token in chunks, cut into pieces; then token by token."""
    pieces = []
    for chunk in range(0, prompt - 1, longest):
        end = min(chunk + longest, prompt - 1)
        pieces += [(start, min(start + within, end)) for start in range(chunk, end, within)]
    return pieces + [(t, t + 1) for t in range(prompt - 1, total)]


def chosen_pairs(total: int, choose: Choose) -> Pairs:
    """Pairs of a method whose queries choose in every layer."""
    causal = dense_pairs(total, lambda t, j: t - j, lambda t: 1.0)
    return causal._replace(choose=choose)


def infllm_pairs(
    prompt: int, total: int, *, first: int, L: int, B: int, topk: int, R: int, E: int, chunk: int, perhead: bool
) -> Pairs:
    """InfLLM, arXiv 2402.04617: the last L keys; at distance L - 1 initial ones, chosen blocks, what is in neither."""

    def choose(scores: Scores, capped: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        index = torch.arange(total)
        distance = index[:, None] - index
        near, far = capped(scores(distance.double())), capped(scores(L - 1.0))
        uncapped = scores(L - 1.0)
        heads = len(near)
        visible = torch.zeros(heads, total, total, dtype=torch.bool)
        received = torch.zeros(heads, total, dtype=torch.float64)
        initial, blocks, represented, start = 0, list[range](), list[list[list[int]]](), 0
        for a, e in pieces_of(prompt, total, chunk, E):
            chosen = [set(range(len(blocks))) for _ in range(heads)]
            if len(blocks) > topk:
                found = [
                    [sum(float(uncapped[h, t, j]) for t in range(a, e) for j in block[h]) for block in represented]
                    for h in range(heads)
                ]
                if not perhead:
                    found = [[sum(column) for column in zip(*found, strict=True)]] * heads
                best = [sorted(range(len(blocks)), key=lambda b, own=own: -own[b])[:topk] for own in found]
                chosen = [set(own) for own in best]
            for h in range(heads):
                far_keys = {*range(initial), *range(start, e)}.union(*(blocks[b] for b in chosen[h]))
                for t in range(a, e):
                    weights = {}
                    for j in range(t + 1):
                        if t - j < L:
                            weights[j] = math.exp(near[h, t, j])
                        elif j in far_keys:
                            weights[j] = math.exp(far[h, t, j])
                    visible[h, t, list(weights)] = True
                    total_weight = sum(weights.values())
                    for j in range(max(0, t - L + 1), t + 1):
                        received[h, j] += weights[j] / total_weight
            while e - start > L and initial < first:
                initial, start = initial + 1, start + 1
            while e - start - B >= L:
                blocks.append(range(start, start + B))
                represented.append([sorted(blocks[-1], key=lambda j, h=h: -received[h, j])[:R] for h in range(heads)])
                start += B
        return visible, distance.clamp(max=L - 1).double()

    return chosen_pairs(total, choose)


def reattention_pairs(
    prompt: int,
    total: int,
    *,
    g: int,
    L: int,
    topk: int,
    span: int,
    chunk: int,
    align: int,
    clip: int | None,
    original: bool,
) -> Pairs:
    """ReAttention, arXiv 2407.15176: g first keys, spans around the best, the last ones; numbered without gaps."""
    first = min(prompt - 1, g + L - (align - (prompt - 1 - g + L) % align))
    pieces = [(0, first)] * (first > 0) + [
        (a + first, e + first) for a, e in pieces_of(prompt - first, total - first, chunk, chunk)
    ]

    def choose(scores: Scores, capped: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        plain = scores(0.0)
        visible = torch.zeros(1, total, total, dtype=torch.bool)
        distance = torch.zeros(total, total, dtype=torch.float64)
        for a, m in pieces:
            kept = list(range(m))
            if m > g + L:
                last = L if topk == 0 else L - (align - (m - g - L) % align)
                middle = range(g, m - last)
                times: dict[int, int] = {}
                for own in plain[:, a:m].flatten(0, 1).tolist():
                    for j in sorted(middle, key=lambda j, own=own: -own[j])[:topk]:
                        times[j] = times.get(j, 0) + 1
                best = sorted(times, key=lambda j: (times[j], j), reverse=True)[:clip]
                seen = {hit + offset for hit in best for offset in range(-(span // 2), (span + 1) // 2)}
                kept = [*range(g), *sorted(seen.intersection(middle)), *range(m - last, m)]
            for t in range(a, m):
                for slot, j in enumerate(kept):
                    if j <= t:
                        visible[0, t, j] = True
                        distance[t, j] = t - j if original else kept.index(t) - slot
        return visible, distance

    return chosen_pairs(total, choose)


def gali_pairs(
    prompt: int, total: int, *, T: int, w: int, chunk: int, growth: float | None, interpolate: bool, logn: bool
) -> Pairs:
    """GALI, arXiv 2502.02659: each piece places all keys anew, within T."""
    ends, done = {}, 0
    while done < total:
        piece = T if done < T else chunk if growth is None else max(1, int(done * growth))
        end = min(done + piece, prompt) if done < prompt else done + 1
        ends |= dict.fromkeys(range(done, end), end)
        done = end

    def position(token: int, m: int) -> float:
        if m <= T:
            return token
        g = math.ceil((m - w) / (T - w))
        k = math.ceil((m - T) / (g - 1))
        f = m - (T - k)
        return token // g + (token % g) / g if token < f else k + token - f

    def rule(t: int, j: int) -> float:
        query = position(t, ends[t])
        return (math.ceil(query) if interpolate else query) - position(j, ends[t])

    return dense_pairs(total, rule, log_n(T, logn))._replace(interpolated=interpolate)


def scaled_rope_pairs(
    prompt: int, total: int, *, head_dim: int, base: float, stretch: Callable[[int], float], divide: float = 1.0
) -> Pairs:
    """Plain distances at a base multiplied by stretch(length)^(d / (d - 2)) and frequencies divided by `divide`."""
    pairs = dense_pairs(total, lambda t, j: t - j, lambda t: 1.0)
    power = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    rows = []
    for t in range(total):
        own = base * stretch(prompt if t < prompt else t + 1) ** (head_dim / (head_dim - 2))
        rows.append(own**-power / divide)
    return pairs._replace(frequency=torch.stack(rows))


def yarn_pairs(
    prompt: int,
    total: int,
    *,
    T: int,
    head_dim: int,
    base: float,
    factor: float,
    fast: float,
    slow: float,
    attention_factor: float | None,
    truncate: bool,
) -> Pairs:
    """YaRN, arXiv 2309.00071, section 3: interpolate by parts, and scores times A^2, A = 0.1 ln(factor) + 1."""

    def component(turns: float) -> float:
        """The component that makes so many turns within T."""
        return head_dim * math.log(T / (2 * math.pi * turns)) / (2 * math.log(base))

    low, high = component(fast), component(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    frequency = []
    for m in range(head_dim // 2):
        ramp = min(1.0, max(0.0, (m - low) / ((high - low) or 0.001)))
        plain = base ** (-2 * m / head_dim)
        frequency.append(plain * (1 - ramp) + plain / factor * ramp)
    A = attention_factor if attention_factor is not None else 0.1 * math.log(factor) + 1
    pairs = dense_pairs(total, lambda t, j: t - j, lambda t: A**2)
    return pairs._replace(frequency=torch.tensor(frequency, dtype=torch.float64).expand(total, -1))


def star_pairs(prompt: int, total: int, *, b: int, A: int, q: int, scale: Callable[[int], float]) -> Pairs:
    """Star Attention, arXiv 2411.17116: a block sees A anchor tokens and itself; the last q tokens and later ones all.

    Only these have a factor.
    """
    context = prompt - q

    def rule(t: int, j: int) -> int | None:
        return t - j if t >= context or j < A or j // b == t // b else None

    return dense_pairs(total, rule, lambda t: scale(t) if t >= context else 1.0)


def string_pairs(prompt: int, total: int, *, T: int, S: int, W: int, rope: float, logn: bool) -> Pairs:
    """STRING, arXiv 2410.18745: d - S + W from d = S on; cosines and sines, of query and key, times `rope`."""
    return dense_pairs(total, lambda t, j: t - j if t - j < S else t - j - S + W, lambda t: rope**2 * log_n(T, logn)(t))


def lampe_map(x: int, length: int, U: int) -> int:
    """floor(U x / (length - 1)) with the published code's roundings to float32."""
    return math.floor(np.float32(np.float32(1 / (length - 1)) * np.float32(U)) * np.float32(x))


def lampe_pairs(
    prompt: int,
    total: int,
    *,
    T: int,
    regions: int,
    H: int,
    I: int,  # noqa: E741
    U: Callable[[int, int], int],
    rope: float,
    logn: bool,
) -> Pairs:
    """LaMPE, arXiv 2508.02308, decoded token by token; U(prompt, length) is what `length` tokens are mapped to."""

    def m(x: int, length: int) -> int:
        return lampe_map(x, length, U(prompt, length))

    bias = H - 1 - m(H, prompt) if prompt > H else 0
    mapped = prompt >= 2 * H
    if regions == 3 and mapped:
        r = I
        while m(r + 1, prompt) == m(I, prompt):
            r += 1
        r = min(r, prompt - H)
        far_bias = (prompt - 1 - r) - m(prompt - 1 - r, prompt) - bias

    def rule(t: int, j: int) -> int:
        d = t - j
        if d < H or (regions == 3 and not mapped):
            return d
        if regions == 2:
            length = prompt if t < prompt else t + 1
            return m(t, length) - m(j, length) + bias
        if d >= prompt - r:
            return d - far_bias
        place = t if t < prompt else max(prompt - 1, t - H)
        return m(place, prompt) - m(j, prompt) + bias

    return dense_pairs(total, rule, lambda t: rope**2 * log_n(T, logn)(t))


def dpe_pairs(
    prompt: int,
    total: int,
    *,
    T: int,
    head_dim: int,
    w: int,
    sizes: list[int],
    bounds: list[int],
    exact: bool,
    logn: bool,
) -> Pairs:
    """DPE, arXiv 2504.18857: distance t//s - j//s + w - w//s from w on, s of the group that the pair belongs to."""
    distance = torch.zeros(total, total, head_dim // 2, dtype=torch.float64)
    for p in range(head_dim // 2):
        (s,) = [s for s, (first, end) in zip(sizes, pairwise(bounds), strict=True) if first <= p < end]
        offset = w - (w / s if exact else w // s)
        for t in range(total):
            for j in range(t + 1):
                distance[t, j, p] = t - j if t - j < w else t // s - j // s + offset
    plain = dense_pairs(total, lambda t, j: t - j, log_n(T, logn))
    return plain._replace(distance=distance)


def dense_logits(model: torch.nn.Module, ids: Tensor, pairs: Pairs) -> Tensor:
    """Run a Llama, Mistral, Qwen2 or Qwen3 model with explicit pairs.

    Args:
        model: The transformers model; only its weights and config are used.
        ids: (n,) token ids.
        pairs: For these tokens.

    Returns:
        (n, vocab) logits in float64.
    """
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    base = config.rope_parameters["rope_theta"]
    frequency = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    n = len(ids)

    def norm(states: Tensor, weight: Tensor) -> Tensor:
        return states / (states.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight

    def linear(states: Tensor, name: str) -> Tensor:
        out = states @ weights[f"{name}.weight"].T
        return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out

    hidden = weights["model.embed_tokens.weight"][ids]
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}."
        normed = norm(hidden, weights[name + "input_layernorm.weight"])
        query = linear(normed, name + "self_attn.q_proj").view(n, heads, head_dim)
        key = linear(normed, name + "self_attn.k_proj").view(n, kv_heads, head_dim)
        value = linear(normed, name + "self_attn.v_proj").view(n, kv_heads, head_dim)
        if name + "self_attn.q_norm.weight" in weights:
            query = norm(query, weights[name + "self_attn.q_norm.weight"])
            key = norm(key, weights[name + "self_attn.k_norm.weight"])
        outputs = torch.zeros(n, heads, head_dim, dtype=torch.float64)
        paired = [  # queries and keys of each head, as complex numbers
            tuple(
                torch.view_as_complex(states.view(n, 2, -1).transpose(1, 2).contiguous())
                for states in (query[:, head], key[:, head * kv_heads // heads])
            )
            for head in range(heads)
        ]

        def row(head: int, t: int, distance: Tensor, paired: list[tuple[Tensor, Tensor]] = paired) -> Tensor:
            """Scores of query t and every key."""
            q, k = paired[head]
            own = frequency if pairs.frequency is None else pairs.frequency[t]

            def turned(distance: Tensor) -> Tensor:
                angle = distance.view(n, -1) * own
                if pairs.own_keys:
                    angle = t * own - torch.arange(n)[:, None] * pairs.frequency
                turn = torch.polar(torch.ones(n, len(own)).double(), angle)
                return (q[t] * k.conj() * turn).real.sum(-1) / math.sqrt(head_dim)

            if pairs.interpolated:
                return torch.lerp(turned(distance.floor()), turned(distance.ceil()), distance - distance.floor())
            return turned(distance)

        def scores(distance: Tensor | float, row: Callable[..., Tensor] = row) -> Tensor:
            rows = torch.as_tensor(distance, dtype=torch.float64).expand(n, n)
            return torch.stack([torch.stack([row(head, t, rows[t]) for t in range(n)]) for head in range(heads)])

        visible, distance = pairs.visible, pairs.distance
        if pairs.choose is not None:
            visible, distance = pairs.choose(scores, lambda given: given)
        visible = visible.expand(heads, n, n)
        for head in range(heads):
            v = value[:, head * kv_heads // heads]
            for t in range(n):
                score = row(head, t, distance[t]) * pairs.scale[t]
                outputs[t, head] = score.masked_fill(~visible[head, t], -torch.inf).softmax(-1) @ v
        hidden = hidden + linear(outputs.flatten(1), name + "self_attn.o_proj")
        normed = norm(hidden, weights[name + "post_attention_layernorm.weight"])
        gated = silu(linear(normed, name + "mlp.gate_proj")) * linear(normed, name + "mlp.up_proj")
        hidden = hidden + linear(gated, name + "mlp.down_proj")
    hidden = norm(hidden, weights["model.norm.weight"])
    head_weight = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return hidden @ head_weight.T
