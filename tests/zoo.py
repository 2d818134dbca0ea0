"""Tiny random models of every supported family and variant; sizes are different primes where the family allows."""

import torch
import transformers

T = 23  # training length
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.4],
    "long_factor": [1.0, 1.7, 2.9, 5.3],
    "original_max_position_embeddings": T,
}
COMMON = {
    "vocab_size": 59,
    "hidden_size": HEADS * HEAD_DIM,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": T,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 58,
}
MIXED = {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
EXPERTS = {
    "intermediate_size": 40,
    "num_local_experts": 3,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": T}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": T,
}
PARTIAL = {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}}
FALCON = {"hidden_size": 32, "ffn_hidden_size": 37, "new_decoder_architecture": False}
# Name of a variant: stem of the transformers classes, and what its config has besides COMMON.
VARIANTS: dict[str, tuple[str, dict]] = {
    "llama": ("Llama", {}),
    "llama-llama3": ("Llama", {"rope_parameters": {**ROPE, **LLAMA3}, "max_position_embeddings": 4 * T}),
    "llama-yarn": ("Llama", {"rope_parameters": {**ROPE, **YARN}, "max_position_embeddings": 4 * T}),
    "llama-linear": ("Llama", {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 2.0}}),
    "llama-dynamic": ("Llama", {"rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 2.0}}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 7}),
    "mixtral": ("Mixtral", EXPERTS),
    "qwen2": ("Qwen2", {}),
    "qwen2-window": ("Qwen2", {**MIXED, "use_sliding_window": True, "sliding_window": 7}),
    "qwen3": ("Qwen3", {}),
    "qwen3_moe": ("Qwen3Moe", EXPERTS),
    "gemma": ("Gemma", {}),
    "gemma2": ("Gemma2", {**MIXED, "sliding_window": 7, "attn_logit_softcapping": 3.0}),
    "gemma3_text": (
        "Gemma3",
        {
            **MIXED,
            "sliding_window": 7,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
            },
        },
    ),
    "phi": ("Phi", {**PARTIAL, "qk_layernorm": True}),
    "phi3": ("Phi3", {"sliding_window": None, "original_max_position_embeddings": T}),
    "phi3-longrope": (
        "Phi3",
        {
            "rope_parameters": LONG,
            "max_position_embeddings": 8 * T,
            "sliding_window": None,
            "original_max_position_embeddings": T,
        },
    ),
    "gpt_neox": ("GPTNeoX", PARTIAL),
    "gptj": ("GPTJ", {"n_embd": 32, "n_head": HEADS, "n_layer": 2, "n_positions": T, "rotary_dim": 4, "n_inner": 37}),
    "cohere": ("Cohere", {"use_qk_norm": True, "logit_scale": 1.0}),
    "cohere2": ("Cohere2", {**MIXED, "sliding_window": 7, "logit_scale": 1.0}),
    "glm": ("Glm", PARTIAL),
    "glm4": ("Glm4", PARTIAL),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", {**MIXED, "sliding_window": 7, "rope_theta": 10000.0}),
    "stablelm": ("StableLm", {**PARTIAL, "qk_layernorm": True}),
    "starcoder2": ("Starcoder2", {"sliding_window": None}),
    "falcon": ("Falcon", {**FALCON, "alibi": False}),
    "falcon-groups": ("Falcon", {**FALCON, "alibi": False, "new_decoder_architecture": True, "num_kv_heads": KV_HEADS}),
    "falcon-alibi": ("Falcon", {**FALCON, "alibi": True, "multi_query": False, "parallel_attn": False}),
    "mpt": (
        "Mpt",
        {"d_model": 30, "n_heads": 6, "n_layers": 2, "max_seq_len": T, "expansion_ratio": 2, "use_cache": True},
    ),
    "bloom": ("Bloom", {"hidden_size": 30, "n_head": 6, "n_layer": 2, "seq_length": T}),
}
ALIBI = ("falcon-alibi", "mpt", "bloom")
UNSCALED = (*ALIBI, "cohere2")  # no rotary frequencies in the layers that methods change
SCALING = ("dynamic_ntk", "ntk", "linear", "yarn", "dpe")  # methods that need rotary frequencies
ROTARY_DIM = {"phi": 4, "gpt_neox": 4, "gptj": 4, "glm": 4, "glm4": 4, "stablelm": 4}  # others: all of HEAD_DIM


def tiny(name: str, **changes) -> torch.nn.Module:
    """Create a random model with sharp attention."""
    stem, options = VARIANTS[name]
    settings = {**COMMON, **options, **changes}
    if stem in ("Mpt", "Bloom", "GPTJ"):
        settings = {
            key: value
            for key, value in settings.items()
            if key in (*options, *changes, "vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")
        }
    if stem == "Falcon":
        del settings["head_dim"]
    config_class = getattr(transformers, ("Gemma3Text" if stem == "Gemma3" else stem) + "Config")
    torch.manual_seed(0)
    model = getattr(transformers, f"{stem}ForCausalLM")(config_class(**settings)).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            # Norms stay near 1, everything else gets weights that make positions and biases matter.
            near_one = parameter.ndim == 1 and path.endswith("weight")
            parameter.normal_(float(near_one and "gemma" not in name), 0.1 if near_one else 0.3)
    return model
