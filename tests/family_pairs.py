"""Pairs of query and key of every method on the models of `zoo`, with options that act on short inputs."""

import oracles
import torch
import transformers
import zoo
from method_cases import CASES, Setting
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from zoo import ROTARY_DIM, T, tiny

OPTIONS = {name: case.short for name, case in CASES.items()}


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
    model = Setting(T, ROTARY_DIM.get(variant, zoo.HEAD_DIM), rope_parameters(variant)["rope_theta"])
    if name == "yarn":  # transformers' own, for models that rotate part of a head or have a scaling already
        frequency, factor = yarn(variant)
        pairs = oracles.dense_pairs(total, lambda t, j: t - j, lambda t: 1.0)
        return pairs._replace(frequency=frequency.expand(total, -1)), factor
    pairs = CASES[name].pairs(bound, prompt, total, model)
    if name in ("dynamic_ntk", "ntk", "linear"):
        return pairs, 1.0
    if variant == "llama-dynamic":
        native = oracles.scaled_rope_pairs(prompt, total, **model.rope, stretch=lambda n: max(1.0, 2 * n / T - 1))
        pairs = pairs._replace(frequency=native.frequency)
    if variant == "phi3-longrope":
        power = torch.arange(0, 8, 2, dtype=torch.float64) / 8
        lengths = [prompt if t < prompt else t + 1 for t in range(total)]
        divide = [zoo.LONG["long_factor" if length > T else "short_factor"] for length in lengths]
        pairs = pairs._replace(frequency=10000.0**-power / torch.tensor(divide, dtype=torch.float64))
    return pairs, None
