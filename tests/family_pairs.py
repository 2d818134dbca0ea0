"""Pairs of query and key of every method on the models of `zoo`, with options that act on short inputs."""

import oracles
import torch
import transformers
import zoo
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from zoo import ROTARY_DIM, T, tiny

OPTIONS = {
    "mesa": {},
    "stair": {"extrapolated_position": 5, "extrapolated_width": 7},
    "rerope": {"window": 5},
    "leaky_rerope": {"window": 5, "scaling_factor": 3.0},
    "self_extend": {"group_size": 5, "neighbor_window": 7},
    "lm_infinite": {"n_global": 3, "n_local": 11},
    "streaming_llm": {"start_size": 2, "recent_size": 11},
    "dual_chunk": {"chunk_size": 17, "local_window": 5},
    "dynamic_ntk": {"factor": 2.0},
    "ntk": {"factor": 3.0},
    "linear": {"factor": 3.0},
    "yarn": {"factor": 3.0},
}


def rope_parameters(variant):
    found = getattr(tiny(variant).config, "rope_parameters", None) or zoo.ROPE
    return found.get("full_attention", found)


def yarn(variant):
    """Frequencies and factor that transformers computes for the method's parameters."""
    parameters = {**rope_parameters(variant), "rope_type": "yarn", "original_max_position_embeddings": T}
    parameters |= {"factor": 3.0, "beta_fast": 32.0, "beta_slow": 1.0, "partial_rotary_factor": 1.0}
    parameters["truncate"] = True
    config = transformers.LlamaConfig(
        head_dim=ROTARY_DIM.get(variant, zoo.HEAD_DIM),
        rope_parameters=parameters,
        max_position_embeddings=tiny(variant).config.max_position_embeddings,
    )
    module = LlamaRotaryEmbedding(config)
    return module.inv_freq.double(), module.attention_scaling


def pairs_of(variant, name, bound, prompt, total):
    """The pairs of a method with the options above, and the factor of cosines and sines if it is not the model's."""
    opts = OPTIONS[name]
    rope = {"head_dim": ROTARY_DIM.get(variant, zoo.HEAD_DIM), "base": rope_parameters(variant)["rope_theta"]}
    scaled = {"dynamic_ntk": lambda n: max(1.0, 2 * n / T - 1), "ntk": lambda n: 3.0, "linear": lambda n: 1.0}
    if name == "yarn":
        frequency, factor = yarn(variant)
        pairs = oracles.dense_pairs(total, lambda t, j: t - j, lambda t: 1.0)
        return pairs._replace(frequency=frequency.expand(total, -1)), factor
    if name in scaled:
        divide = 3.0 if name == "linear" else 1.0
        return oracles.scaled_rope_pairs(prompt, total, **rope, stretch=scaled[name], divide=divide), 1.0
    if name == "mesa":
        pairs = oracles.mesa_pairs(
            prompt,
            total,
            T=T,
            F=bound.first_chunk,
            L=bound.last_chunk,
            M_max=bound.split_margin,
            N=bound.extrapolated_position,
            R=bound.reweave_every,
        )
    elif name == "stair":
        pairs = oracles.stair_pairs(prompt, total, T=T, N=5, E=7, logn=bound.log_n)
    elif name == "rerope":
        pairs = oracles.rerope_pairs(prompt, total, T=T, w=5, logn=bound.log_n)
    elif name == "leaky_rerope":
        pairs = oracles.leaky_pairs(prompt, total, T=T, w=5, k=opts["scaling_factor"], logn=bound.log_n)
    elif name == "self_extend":
        exact = bound.offset == "exact"
        pairs = oracles.self_extend_pairs(prompt, total, T=T, G=5, w=7, exact=exact, logn=bound.log_n)
    elif name == "lm_infinite":
        pairs = oracles.lm_infinite_pairs(prompt, total, L=11, G=3, D=11)
    elif name == "streaming_llm":
        pairs = oracles.streaming_pairs(prompt, total, S=2, R=11)
    else:
        pairs = oracles.dual_chunk_pairs(prompt, total, T=T, C=17, w=5, mscale=False)
    if variant == "llama-dynamic":
        native = oracles.scaled_rope_pairs(prompt, total, **rope, stretch=scaled["dynamic_ntk"])
        pairs = pairs._replace(frequency=native.frequency)
    if variant == "phi3-longrope":
        power = torch.arange(0, 8, 2, dtype=torch.float64) / 8
        lengths = [prompt if t < prompt else t + 1 for t in range(total)]
        divide = [zoo.LONG["long_factor" if length > T else "short_factor"] for length in lengths]
        pairs = pairs._replace(frequency=10000.0**-power / torch.tensor(divide, dtype=torch.float64))
    return pairs, None
