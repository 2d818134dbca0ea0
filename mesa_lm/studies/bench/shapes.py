"""The models that a benchmark runs: any path, or a shape with random weights."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from mesa_lm.errors import UsageError, unknown_name
from mesa_lm.harness.model_args import checked_source, one_line_errors

# Configs of published models, so that speed and memory can be measured without their weights.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny-6x512": {
        "vocab_size": 8192,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
    },
    # https://huggingface.co/meta-llama/Llama-2-7b-hf
    "llama-2-7b": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
    # https://huggingface.co/meta-llama/Meta-Llama-3-8B
    "llama-3-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
}


def load_config(model: str | None, shape: str) -> Any:
    """Return the config of a model.

    Args:
        model: Folder or name on the hub; None: the shape.
        shape: One of `SHAPES`.

    Raises:
        UsageError: Unknown shape.
        ModelError: The model is missing or unreadable.
    """
    if model is None:
        if shape not in SHAPES:
            raise UsageError(unknown_name("shape", shape, SHAPES))
        return LlamaConfig(**SHAPES[shape])
    source = checked_source(model)
    with one_line_errors("model", source):
        return AutoConfig.from_pretrained(source)


def load_model(model: str | None, shape: str, dtype: str, device: str) -> PreTrainedModel:
    """Load a model, or create one of a shape with random weights from a fixed seed.

    Args:
        model: As in `load_config`.
        shape: As in `load_config`.
        dtype: Name of a torch dtype.
        device: Where the weights are to lie.
    """
    config = load_config(model, shape)
    if model is None:
        torch.manual_seed(0)
        with torch.device(device):
            created: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        created.eval()
        return created
    source = checked_source(model)
    with one_line_errors("model", source):
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
    loaded.to(device)  # type: ignore[arg-type]
    loaded.eval()
    return loaded
