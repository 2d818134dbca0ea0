"""What tests know of each method: parameters to draw, and its oracle. A new method needs a line in `CASES`."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import oracles
import torch
from hypothesis import strategies as st
from oracles import Pairs

booleans, windows = st.booleans(), st.integers(1, 45)


class Setting(NamedTuple):
    """What an oracle has to know of a model.

    Attributes:
        T: Its training length in tokens.
        head_dim: Components of a head that are rotated.
        base: Of its rotary frequencies.
    """

    T: int
    head_dim: int
    base: float

    @property
    def rope(self) -> dict[str, Any]:
        return {"head_dim": self.head_dim, "base": self.base}


class Case(NamedTuple):
    """A method under test.

    Attributes:
        drawn: Parameters to draw, for a training length of 41 tokens.
        pairs: The oracle: from the bound method, prompt and total length and the model's setting to what is seen where.
        short: Parameters under which inputs of some dozen tokens are changed, for every model family.
        sees_ahead: Whether what a token is given depends on how many follow it, for some of the drawn parameters.
        shares: Whether, with the short parameters, inputs that begin alike share keys and values of their beginning.
    """

    drawn: dict[str, st.SearchStrategy[Any]]
    pairs: Callable[[Any, int, int, Setting], Pairs]
    short: dict[str, Any]
    sees_ahead: bool = False
    shares: bool = True


def _given(width: Any) -> Any:
    return None if width == "auto" else width


def _log_n(pairs: Pairs, m: Any, model: Setting) -> Pairs:
    """Pairs with the method's log-n scaling."""
    scale = torch.tensor([oracles.log_n(model.T, m.log_n)(t) for t in range(len(pairs.visible))])
    return pairs._replace(scale=pairs.scale * (scale if pairs.scale.ndim == 1 else scale[:, None]))


def _dpe(m: Any, prompt: int, total: int, model: Setting) -> Pairs:
    auto = [math.ceil(2 * prompt / model.T) if prompt > model.T else 1]
    sizes = auto if m.scale_factors == "auto" else [int(size) for size in m.scale_factors.split("/")]
    pairs = model.head_dim // 2
    bounds = [group * pairs // len(sizes) for group in range(len(sizes) + 1)]
    if m.group_bounds != "equal":
        bounds = [int(bound) for bound in m.group_bounds.split("/")]
    return oracles.dpe_pairs(
        prompt,
        total,
        T=model.T,
        head_dim=model.head_dim,
        w=m.window,
        sizes=sizes,
        bounds=bounds,
        exact=m.offset == "exact",
        logn=m.log_n,
    )


def _star(m: Any, prompt: int, total: int, model: Setting) -> Pairs:
    scale = oracles.log_n(model.T, m.log_n)
    pairs = oracles.star_pairs(prompt, total, b=m.block_size, A=m.anchor_block_size, q=m.query_length, scale=scale)
    if m.scaling == "ntk":
        scaled = oracles.scaled_rope_pairs(prompt, total, **model.rope, stretch=lambda length: m.factor or 8)
    elif m.scaling == "yarn":
        yarn = {"factor": m.factor or 16, "fast": 32.0, "slow": 1.0, "attention_factor": None, "truncate": True}
        scaled = oracles.yarn_pairs(prompt, total, **model.rope, T=model.T, **yarn)
    else:
        return pairs
    return pairs._replace(frequency=scaled.frequency, scale=pairs.scale * scaled.scale)


CASES: dict[str, Case] = {
    "mesa": Case(
        {},  # parameters that fit one another are drawn in test_mesa.py
        lambda m, prompt, total, model: oracles.mesa_pairs(
            prompt,
            total,
            T=model.T,
            F=m.first_chunk,
            L=m.last_chunk,
            M_max=m.split_margin,
            N=m.extrapolated_position,
            R=m.reweave_every,
            C=m.chunk_width,
            E=_given(m.extrapolated_width),
            log_n=m.log_n,
            reserve=m.reserve,
            weave=m.weave,
        ),
        {},
        sees_ahead=True,
        shares=False,
    ),
    "stair": Case(
        {"extrapolated_position": st.integers(0, 45), "extrapolated_width": st.integers(1, 60), "log_n": booleans},
        lambda m, prompt, total, model: oracles.stair_pairs(
            prompt, total, T=model.T, N=m.extrapolated_position, E=m.extrapolated_width, logn=m.log_n
        ),
        {"extrapolated_position": 5, "extrapolated_width": 7},
    ),
    "rerope": Case(
        {"window": windows, "log_n": booleans},
        lambda m, prompt, total, model: oracles.rerope_pairs(prompt, total, T=model.T, w=m.window, logn=m.log_n),
        {"window": 5},
    ),
    "leaky_rerope": Case(
        {"window": st.integers(1, 40), "scaling_factor": st.none() | st.floats(1, 20), "log_n": booleans},
        lambda m, prompt, total, model: oracles.leaky_pairs(
            prompt, total, T=model.T, w=m.window, k=m.scaling_factor, logn=m.log_n
        ),
        {"window": 5, "scaling_factor": 3.0},
        sees_ahead=True,
    ),
    "self_extend": Case(
        {
            "group_size": st.integers(1, 12),
            "neighbor_window": windows,
            "offset": st.sampled_from(("exact", "floor")),
            "log_n": booleans,
        },
        lambda m, prompt, total, model: oracles.self_extend_pairs(
            prompt,
            total,
            T=model.T,
            G=m.group_size,
            w=m.neighbor_window,
            exact=m.offset == "exact",
            logn=m.log_n,
        ),
        {"group_size": 5, "neighbor_window": 7},
    ),
    "lm_infinite": Case(
        {"n_global": st.integers(0, 20), "n_local": windows, "distance_limit": st.none() | st.integers(0, 150)},
        lambda m, prompt, total, model: oracles.lm_infinite_pairs(
            prompt, total, L=m.n_local, G=m.n_global, D=m.distance_limit
        ),
        {"n_global": 3, "n_local": 11},
        sees_ahead=True,
    ),
    "streaming_llm": Case(
        {"start_size": st.integers(0, 9), "recent_size": st.integers(0, 45)},
        lambda m, prompt, total, model: oracles.streaming_pairs(prompt, total, S=m.start_size, R=m.recent_size),
        {"start_size": 2, "recent_size": 11},
    ),
    "dual_chunk": Case(
        {"chunk_size": st.integers(11, 45), "local_window": st.integers(1, 10), "mscale": booleans, "log_n": booleans},
        lambda m, prompt, total, model: _log_n(
            oracles.dual_chunk_pairs(prompt, total, T=model.T, C=m.chunk_size, w=m.local_window, mscale=m.mscale),
            m,
            model,
        ),
        {"chunk_size": 17, "local_window": 5},
        sees_ahead=True,
    ),
    "dynamic_ntk": Case(
        {"factor": st.floats(1, 9), "cached_keys": st.sampled_from(("current", "stale")), "log_n": booleans},
        lambda m, prompt, total, model: _log_n(
            oracles.scaled_rope_pairs(
                prompt,
                total,
                **model.rope,
                stretch=lambda length: max(1.0, m.factor * length / model.T - (m.factor - 1)),
            )._replace(own_keys=m.cached_keys == "stale"),
            m,
            model,
        ),
        {"factor": 2.0},
        sees_ahead=True,
        shares=False,
    ),
    "infllm": Case(
        {
            "n_init": st.integers(0, 9),
            "n_local": st.integers(9, 45),
            "block_size": st.integers(3, 12),
            "topk": st.integers(0, 4),
            "repr_topk": st.integers(1, 3),
            "exc_block_size": st.integers(1, 9),
            "chunk_size": st.integers(1, 60),
            "perhead": booleans,
            "offload": booleans,
        },
        lambda m, prompt, total, model: oracles.infllm_pairs(
            prompt,
            total,
            first=m.n_init,
            L=m.n_local,
            B=m.block_size,
            topk=m.topk,
            R=m.repr_topk,
            E=m.exc_block_size,
            chunk=m.chunk_size,
            perhead=m.perhead,
        ),
        {"n_init": 3, "n_local": 11, "block_size": 5, "topk": 2, "repr_topk": 2, "exc_block_size": 7},
        sees_ahead=True,
        shares=False,
    ),
    "reattention": Case(
        {
            "n_init": st.integers(0, 9),
            "n_local": st.integers(14, 45),
            "topk": st.integers(0, 4),
            "span": st.integers(1, 9),
            "chunk_size": st.integers(1, 8),
            "align": st.integers(1, 6),
            "recall_clip": st.integers(1, 5) | st.just("all"),
            "original_positions": booleans,
        },
        lambda m, prompt, total, model: oracles.reattention_pairs(
            prompt,
            total,
            g=m.n_init,
            L=m.n_local,
            topk=m.topk,
            span=m.span,
            chunk=m.chunk_size,
            align=m.align,
            clip=None if m.recall_clip == "all" else m.recall_clip,
            original=m.original_positions,
        ),
        {"n_init": 3, "n_local": 11, "topk": 1, "span": 3, "chunk_size": 5, "align": 4, "recall_clip": 3},
        sees_ahead=True,
        shares=False,
    ),
    "gali": Case(
        {
            "local_window": st.integers(0, 40),
            "chunk_size": st.integers(1, 60),
            "chunk_growth": st.none() | st.floats(0.1, 1),
            "interpolate_logits": booleans,
            "log_n": booleans,
        },
        lambda m, prompt, total, model: oracles.gali_pairs(
            prompt,
            total,
            T=model.T,
            w=m.local_window,
            chunk=m.chunk_size,
            growth=m.chunk_growth,
            interpolate=m.interpolate_logits,
            logn=m.log_n,
        ),
        {"local_window": 3, "chunk_size": 17},
        sees_ahead=True,
        shares=False,
    ),
    "ntk": Case(
        {"factor": st.floats(1, 9), "log_n": booleans},
        lambda m, prompt, total, model: _log_n(
            oracles.scaled_rope_pairs(prompt, total, **model.rope, stretch=lambda length: m.factor), m, model
        ),
        {"factor": 3.0},
    ),
    "linear": Case(
        {"factor": st.floats(1, 9), "log_n": booleans},
        lambda m, prompt, total, model: _log_n(
            oracles.scaled_rope_pairs(prompt, total, **model.rope, stretch=lambda length: 1.0, divide=m.factor),
            m,
            model,
        ),
        {"factor": 3.0},
    ),
    "yarn": Case(
        {
            "factor": st.floats(1, 9),
            "beta_fast": st.floats(2, 40),
            "beta_slow": st.floats(0.1, 2),
            "attention_factor": st.none() | st.just("ntk_by_parts") | st.floats(0.5, 2),
            "truncate": booleans,
            "log_n": booleans,
        },
        lambda m, prompt, total, model: _log_n(
            oracles.yarn_pairs(
                prompt,
                total,
                **model.rope,
                T=model.T,
                factor=m.factor,
                fast=m.beta_fast,
                slow=m.beta_slow,
                attention_factor=1.0 if m.attention_factor == "ntk_by_parts" else m.attention_factor,
                truncate=m.truncate,
            ),
            m,
            model,
        ),
        {"factor": 3.0},
    ),
    "star": Case(
        {
            "block_size": st.integers(11, 50),
            "anchor_block_size": st.none() | st.integers(1, 11),
            "query_length": st.integers(1, 20),
            "log_n": booleans,
            "scaling": st.sampled_from(("none", "ntk", "yarn")),
        },
        _star,
        {"block_size": 13, "anchor_block_size": 5, "query_length": 7},
        sees_ahead=True,
        shares=False,
    ),
    "dpe": Case(
        {
            "window": st.integers(1, 30),
            "scale_factors": st.sampled_from(("auto", "3", "1/5/2", "4/7")),
            "offset": st.sampled_from(("exact", "floor")),
            "log_n": booleans,
        },
        _dpe,
        {"window": 5, "scale_factors": "2/5"},
        sees_ahead=True,
    ),
    "lampe": Case(
        {
            "regions": st.integers(2, 3),
            "window": st.integers(1, 30),
            "initial": st.integers(0, 20),
            "map_length": st.just("auto") | st.integers(1, 60),
            "rope_scale": st.floats(0.8, 1.2),
            "log_n": booleans,
        },
        lambda m, prompt, total, model: oracles.lampe_pairs(
            prompt,
            total,
            T=model.T,
            regions=m.regions,
            H=m.window,
            I=m.initial,
            U=lambda prompt, n: min(1536, 3 * model.T // 8, n) if m.map_length == "auto" else m.map_length,
            rope=m.rope_scale,
            logn=m.log_n,
        ),
        {"window": 7, "initial": 3},
        sees_ahead=True,
        shares=False,
    ),
    "string": Case(
        {
            "shift": st.integers(20, 45),
            "local_value": st.integers(0, 20),
            "rope_scale": st.floats(0.8, 1.2),
            "log_n": booleans,
        },
        lambda m, prompt, total, model: oracles.string_pairs(
            prompt, total, T=model.T, S=m.shift, W=m.local_value, rope=m.rope_scale, logn=m.log_n
        ),
        {"shift": 11, "local_value": 3},
    ),
}
