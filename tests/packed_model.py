"""A random model of remote code in the shape of Baichuan's, loaded the way a user does."""

import json
import shutil
from pathlib import Path

import torch
import transformers

T = 23
CODE = Path(__file__).parent / "remote_code" / "modeling_packed.py"
SHAPES = {"rotary": {"max_position_embeddings": T}, "alibi": {"model_max_length": T}}


def load_packed(folder: Path, **config) -> torch.nn.Module:
    """Load a model from a folder with its code, with trust_remote_code.

    Args:
        folder: Where its files are put.
        **config: What its config has besides; one of `SHAPES` decides the positions.
    """
    shutil.copy(CODE, folder / CODE.name)
    classes = {
        "AutoConfig": "modeling_packed.PackedConfig",
        "AutoModelForCausalLM": "modeling_packed.PackedForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps({"model_type": "baichuan", "auto_map": classes, **config}))
    loaded = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(loaded, trust_remote_code=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model
