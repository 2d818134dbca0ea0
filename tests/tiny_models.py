"""Tiny random models of four families; `zoo` has all."""

import torch
import transformers

FAMILIES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}


def tiny_model(family: str = "llama", train_length: int = 41, kv_heads: int = 2, **options) -> torch.nn.Module:
    """Create a random model with sharp attention; every size is a different prime where the family allows."""
    config_class, model_class = FAMILIES[family]
    settings = {
        "vocab_size": 59,
        "hidden_size": 24,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "head_dim": 6,
        "max_position_embeddings": train_length,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 58,
    }
    torch.manual_seed(0)
    model = model_class(config_class(**{**settings, **options})).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model
