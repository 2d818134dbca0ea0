"""The model families that methods run on: what each one's attention does, and which methods it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from mesa_lm.errors import ModelError
from mesa_lm.methods.base import Method
from mesa_lm.methods.registry import available_methods


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What the attention of one model type of transformers does.

    Attributes:
        attention: Names of its attention classes in transformers' file for this type.
        folder: Folder of transformers.models that holds the file; None for remote code, which is tried out on a few
            tokens before it is believed.
        position: Its position encoding; "by config": one of the other two, see `uses_alibi`.
        interleaved: Rotates component 2m with 2m + 1, else m with m + rotary_dim / 2.
        interleaved_angles: Its rotary module repeats each cosine at once.
        windows: Which layers have the config's sliding window: those that its layer_types name, or all.
        plain_full_layers: Layers without a window have no position encoding.
        own_call: Its attention does not go through transformers' AttentionInterface.
        about: What else sets it apart, for the table.
    """

    attention: tuple[str, ...]
    folder: str | None
    position: Literal["rotary", "alibi", "by config"] = "rotary"
    interleaved: bool = False
    interleaved_angles: bool = False
    windows: Literal["none", "by layer", "all layers"] = "none"
    plain_full_layers: bool = False
    own_call: bool = False
    about: str = ""


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
    "gemma2": Family(attention=("Gemma2Attention",), folder="gemma2", windows="by layer", about="soft-capped scores"),
    "gemma3_text": Family(
        attention=("Gemma3Attention",), folder="gemma3", windows="by layer", about="two sets of frequencies"
    ),
    "phi": Family(attention=("PhiAttention",), folder="phi", about="part of each head rotated"),
    "phi3": Family(attention=("Phi3Attention",), folder="phi3", windows="all layers", about="LongRoPE"),
    "gpt_neox": Family(attention=("GPTNeoXAttention",), folder="gpt_neox", about="part of each head rotated"),
    "gptj": Family(
        attention=("GPTJAttention", "GPTJFlashAttention2"),
        folder="gptj",
        interleaved=True,
        own_call=True,
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
        position="by config",
        own_call=True,
        about="`alibi` in the config chooses the positions",
    ),
    "mpt": Family(attention=("MptAttention",), folder="mpt", position="alibi", own_call=True),
    "bloom": Family(attention=("BloomAttention",), folder="bloom", position="alibi", own_call=True),
    "baichuan": Family(
        attention=("Attention", "BaichuanAttention"),
        folder=None,
        position="by config",
        own_call=True,
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
ROPE_TYPES = ("default", "linear", "llama3", "yarn", "dynamic", "longrope")


class Row(NamedTuple):
    """One line of the table of families.

    Attributes:
        model_type: As in a config; falcon has two.
        position: Its position encoding, in words.
        about: What else sets it apart.
        refusals: For each method by name why it is refused, None where it is supported.
    """

    model_type: str
    position: str
    about: str
    refusals: dict[str, str | None]


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


def uses_alibi(config: Any) -> bool:
    """Tell whether a supported model has ALiBi instead of rotary positions."""
    family = family_of(config)
    if family.position == "by config":
        # Of Baichuan's configs only those of rotary models have a longest position.
        return bool(config.alibi) if config.model_type == "falcon" else not hasattr(config, "max_position_embeddings")
    return family.position == "alibi"


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


def refusal(method: type[Method], family: Family, alibi: bool) -> str | None:
    """Return why a method is refused on models of a family with (or without) ALiBi, None where it is supported."""
    if method.rope_parameters is Method.rope_parameters:
        return None
    if alibi:
        return "it scales rotary frequencies, and ALiBi has none"
    if family.folder is None and method.static_rope:
        return "it replaces a model's rotary frequencies, and remote code keeps its own"
    if family.plain_full_layers:
        return "it scales rotary frequencies, and the layers that see everything have none"
    return None


def check_supported(config: Any, method: Method | None = None) -> None:
    """Check that methods other than `origin` can run on models of this kind.

    Args:
        config: A transformers config.
        method: The method; None checks only the model.

    Raises:
        ModelError: The model type, its rotary scaling, one of its attention's features or the method on it is not
            supported.
    """
    family_of(config)
    for kind, parameters in rope_sets(config).items():
        rope_type = parameters.get("rope_type", "default")
        if rope_type not in ROPE_TYPES:
            where = f" in {kind} layers" if kind else ""
            raise ModelError(
                f"model type {config.model_type!r} with rope_type {rope_type!r}{where} is not supported; supported "
                f"are {', '.join(ROPE_TYPES)}"
            )
        stale = getattr(method, "cached_keys", None) == "stale"
        if stale and rope_type in ("dynamic", "longrope"):
            raise ModelError(
                f"method 'dynamic_ntk' with cached_keys=stale is not supported on rope_type {rope_type!r}, where "
                "cached keys follow the input's length; leave cached_keys out"
            )
    if config.model_type == "falcon" and config.alibi and config._attn_implementation == "eager":
        raise ModelError(
            "model type 'falcon' with alibi and attn_implementation='eager' is not supported: transformers adds the "
            "bias twice there; load it with attn_implementation='sdpa'"
        )
    if getattr(config, "use_bidirectional_attention", None):
        raise ModelError(f"model type {config.model_type!r} with use_bidirectional_attention is not supported")
    layer_windows(config)
    if method is None:
        return
    family, alibi = family_of(config), uses_alibi(config)
    reason = refusal(type(method), family, alibi)
    if reason is not None:
        allowed = [name for name, other in available_methods().items() if refusal(other, family, alibi) is None]
        raise ModelError(
            f"method {method.name!r} is not supported on model type {config.model_type!r}: {reason}; supported are "
            f"{', '.join(allowed)}"
        )


def table() -> list[Row]:
    """Return which methods every family supports, and the types that are refused altogether."""
    rows = []
    for model_type, family in FAMILIES.items():
        kinds = (False, True) if family.position == "by config" else (family.position == "alibi",)
        for alibi in kinds:
            position = "ALiBi" if alibi else "rotary, interleaved" if family.interleaved else "rotary"
            windows = {"none": "", "by layer": "sliding windows in some layers", "all layers": "sliding windows"}
            about = ", ".join(text for text in (family.about, windows[family.windows]) if text)
            cells = {name: refusal(method, family, alibi) for name, method in available_methods().items()}
            rows.append(Row(model_type, position, about, cells))
    for model_type, reason in REFUSED.items():
        cells = {name: None if name == "origin" else reason for name in available_methods()}
        rows.append(Row(model_type, "", "", cells))
    return rows


def markdown(rows: list[Row]) -> str:
    """Return the table of families in Markdown: yes, or the number of the reason below the table."""
    reasons: list[str] = []
    lines = [
        f"| model type | positions | besides | {' | '.join(f'`{name}`' for name in rows[0].refusals)} |",
        "|---" * (3 + len(rows[0].refusals)) + "|",
    ]
    for row in rows:
        cells = []
        for reason in row.refusals.values():
            if reason is not None and reason not in reasons:
                reasons.append(reason)
            cells.append("yes" if reason is None else f"no ({reasons.index(reason) + 1})")
        lines.append(f"| `{row.model_type}` | {row.position} | {row.about} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1))])
