"""The table of model families: a row says what the attention of a model type does, and what is done about it.

`mesa-lm methods` prints the table, in less time than importing torch takes. So neither this module nor those with the
functions of its rows import torch or transformers with themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mesa_lm.errors import ModelError
from mesa_lm.models.alibi_slopes import baichuan_slopes, bloom_slopes, falcon_slopes, mpt_slopes
from mesa_lm.models.attention_forwards import (
    AttentionForward,
    bloom_forward,
    falcon_forward,
    gptj_forward,
    mpt_forward,
    packed_forward,
)
from mesa_lm.models.position_tables import exchange_tables, lengthen_gptj, lengthen_mpt
from mesa_lm.models.rotary_modules import exchange_modules, own_rotary, rebuilt_rotary

if TYPE_CHECKING:
    from contextlib import ExitStack

    from torch import Tensor, nn
    from transformers import PreTrainedModel

# What a config of a family is refused for, None where it is supported.
Objection = Callable[[Any], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What the attention of one model type of transformers does.

    Attributes:
        attention: Names of its attention classes in transformers' file for this type.
        folder: Folder of transformers.models that holds the file; None for remote code.
        attributes: What an attention module must have for `attention_forward`, where its code may be any.
        attention_forward: Stands in for the forward of its attention modules where they do not go through
            transformers' AttentionInterface; None where they do.
        bias_method: Method of the base model that builds a bias for the attention modules, which passes do without.
        slopes: Returns the slope of each head where it has ALiBi; None: it is always rotary.
        alibi_if: Tells from a config whether it has ALiBi; None: always if it has slopes.
        rotary: Returns a module that computes the angles of any position.
        interleaved: Rotates component 2m with 2m + 1, else m with m + rotary_dim / 2.
        interleaved_angles: Its rotary module repeats each cosine at once.
        exchange_rotary: Makes the model compute with the frequencies of a `Rotary`, but for some attention modules.
        lengthen: Makes position tables that end at the training length longer; None: it has none.
        windows: Which layers have the config's sliding window: those that its layer_types name, or all.
        plain_full_layers: Layers without a window have no position encoding.
        objection: What keeps a config of this type out.
        about: What else sets it apart, for the table.
    """

    attention: tuple[str, ...]
    folder: str | None
    attributes: tuple[str, ...] = ()
    attention_forward: AttentionForward | None = None
    bias_method: str | None = None
    slopes: Callable[[PreTrainedModel], Tensor] | None = None
    alibi_if: Callable[[Any], bool] | None = None
    rotary: Callable[[PreTrainedModel], nn.Module] = own_rotary
    interleaved: bool = False
    interleaved_angles: bool = False
    exchange_rotary: Callable[..., None] = exchange_modules
    lengthen: Callable[[PreTrainedModel, ExitStack], None] | None = None
    windows: Literal["none", "by layer", "all layers"] = "none"
    plain_full_layers: bool = False
    objection: Objection = lambda config: None
    about: str = ""

    @property
    def is_remote_code(self) -> bool:
        """Whether its code comes with a model's weights, so that it is tried out before it is believed."""
        return self.folder is None

    @property
    def home(self) -> str:
        """The Python module, or for remote code the package, that holds its attention classes."""
        if self.folder is None:
            return "transformers_modules"
        return f"transformers.models.{self.folder}.modeling_{self.folder}"

    @property
    def position_kinds(self) -> tuple[bool, ...]:
        """Whether its models have ALiBi, False for rotary positions: one answer, or both."""
        if self.slopes is None:
            return (False,)
        return (True,) if self.alibi_if is None else (False, True)

    def uses_alibi(self, config: Any) -> bool:
        """Tell whether a model of the family has ALiBi instead of rotary positions."""
        return self.slopes is not None and (self.alibi_if is None or self.alibi_if(config))


def _eager_bias(config: Any) -> str | None:
    """Object to Falcon's eager attention under ALiBi."""
    if not config.alibi or config._attn_implementation != "eager":
        return None
    return (
        "with alibi and attn_implementation='eager' is not supported: transformers adds the bias twice there; load it "
        "with attn_implementation='sdpa'"
    )


def _uncapped(config: Any) -> str | None:
    """Object to Gemma 2's attention where it leaves soft capping out."""
    if config._attn_implementation != "sdpa":
        return None
    import transformers

    from mesa_lm.models.tested_versions import GEMMA2_CAPS, is_before

    if not is_before(GEMMA2_CAPS):
        return None
    return (
        f"with attn_implementation='sdpa' is not supported under transformers {transformers.__version__}, which leaves "
        f"out its soft capping there; load it with attn_implementation='eager', or use transformers {GEMMA2_CAPS}"
    )


FAMILIES: dict[str, Family] = {
    "llama": Family(attention=("LlamaAttention",), folder="llama"),
    "mistral": Family(attention=("MistralAttention",), folder="mistral", windows="all layers"),
    "mixtral": Family(attention=("MixtralAttention",), folder="mixtral", windows="all layers", about="experts"),
    "qwen2": Family(attention=("Qwen2Attention",), folder="qwen2", windows="by layer"),
    "qwen3": Family(attention=("Qwen3Attention",), folder="qwen3", windows="by layer", about="query and key norms"),
    "qwen3_moe": Family(
        attention=("Qwen3MoeAttention",), folder="qwen3_moe", windows="all layers", about="query and key norms, experts"
    ),
    "gemma": Family(attention=("GemmaAttention",), folder="gemma"),
    "gemma2": Family(
        attention=("Gemma2Attention",),
        folder="gemma2",
        windows="by layer",
        objection=_uncapped,
        about="soft-capped scores",
    ),
    "gemma3_text": Family(
        attention=("Gemma3Attention",), folder="gemma3", windows="by layer", about="two sets of frequencies"
    ),
    "phi": Family(attention=("PhiAttention",), folder="phi", about="part of each head rotated"),
    "phi3": Family(attention=("Phi3Attention",), folder="phi3", windows="all layers", about="LongRoPE"),
    "gpt_neox": Family(attention=("GPTNeoXAttention",), folder="gpt_neox", about="part of each head rotated"),
    "gptj": Family(
        attention=("GPTJAttention", "GPTJFlashAttention2"),
        folder="gptj",
        attention_forward=gptj_forward,
        rotary=rebuilt_rotary,
        interleaved=True,
        exchange_rotary=exchange_tables,
        lengthen=lengthen_gptj,
        about="part of each head rotated",
    ),
    "cohere": Family(attention=("CohereAttention",), folder="cohere", interleaved=True, interleaved_angles=True),
    "cohere2": Family(
        attention=("Cohere2Attention",),
        folder="cohere2",
        interleaved=True,
        interleaved_angles=True,
        windows="by layer",
        plain_full_layers=True,
        about="no positions in layers without window",
    ),
    "glm": Family(attention=("GlmAttention",), folder="glm", interleaved=True, about="part of each head rotated"),
    "glm4": Family(attention=("Glm4Attention",), folder="glm4", interleaved=True, about="part of each head rotated"),
    "olmo2": Family(attention=("Olmo2Attention",), folder="olmo2", about="query and key norms"),
    "olmo3": Family(
        attention=("Olmo3Attention",),
        folder="olmo3",
        windows="by layer",
        about="query and key norms, two sets of frequencies",
    ),
    "stablelm": Family(attention=("StableLmAttention",), folder="stablelm", about="part of each head rotated"),
    "starcoder2": Family(attention=("Starcoder2Attention",), folder="starcoder2", windows="all layers"),
    "falcon": Family(
        attention=("FalconAttention", "FalconFlashAttention2"),
        folder="falcon",
        attention_forward=falcon_forward,
        slopes=falcon_slopes,
        alibi_if=lambda config: bool(config.alibi),
        objection=_eager_bias,
        about="`alibi` in the config chooses the positions",
    ),
    "mpt": Family(
        attention=("MptAttention",),
        folder="mpt",
        attention_forward=mpt_forward,
        slopes=mpt_slopes,
        lengthen=lengthen_mpt,
    ),
    "bloom": Family(
        attention=("BloomAttention",), folder="bloom", attention_forward=bloom_forward, slopes=bloom_slopes
    ),
    "baichuan": Family(
        attention=("Attention", "BaichuanAttention"),
        folder=None,
        attributes=("W_pack", "o_proj", "num_heads", "head_dim"),
        attention_forward=packed_forward,
        bias_method="get_alibi_mask",
        slopes=baichuan_slopes,
        # Only configs of rotary models have a longest position.
        alibi_if=lambda config: not hasattr(config, "max_position_embeddings"),
        rotary=rebuilt_rotary,
        about="remote code; no generation under transformers 5",
    ),
}
LATENT = (
    "latent attention: the model caches one compressed vector per token, and moving keys to other positions takes "
    "those of every head, many times the memory (71 times in DeepSeek-V3)"
)
# Types that are refused, with what keeps them out.
REFUSED: dict[str, str] = {
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "gpt_oss": "attention sinks: every head adds a learned score to the sum of its exponentiated scores",
}


def family_of(config: Any) -> Family:
    """Return the family of a model.

    Args:
        config: A transformers config.

    Raises:
        ModelError: Its type is not supported.
    """
    found = FAMILIES.get(config.model_type)
    if found is None:
        reason = f" ({REFUSED[config.model_type]})" if config.model_type in REFUSED else ""
        raise ModelError(
            f"model type {config.model_type!r} is not supported{reason}; supported are {', '.join(FAMILIES)}; "
            "method 'origin' runs every type"
        )
    return found


def rope_sets(config: Any) -> dict[str | None, dict[str, Any]]:
    """Return a config's rope parameters, by kind of layer where it has several sets, else under None."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_kind: dict[str | None, dict[str, Any]] = {k: value for k, value in parameters.items() if isinstance(value, dict)}
    return by_kind or {None: parameters}


def layer_windows(config: Any) -> list[int | None]:
    """Return each layer's sliding window in tokens, itself included; None where a layer sees everything.

    Raises:
        ModelError: A layer is of a kind that is not known.
    """
    family = family_of(config)
    layers: int = config.num_hidden_layers
    window: int | None = None if family.windows == "none" else getattr(config, "sliding_window", None)
    if family.windows != "by layer" or window is None:
        return [window] * layers
    for kind in config.layer_types:
        if kind not in ("sliding_attention", "full_attention"):
            raise ModelError(
                f"model type {config.model_type!r} has a layer of type {kind!r}; supported are sliding_attention and "
                "full_attention"
            )
    return [window if kind == "sliding_attention" else None for kind in config.layer_types]
