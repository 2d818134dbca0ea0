"""The training length T of a model, from its config."""

from typing import Any

from mesa_lm.errors import MethodError

_NAMES = (
    "original_max_position_embeddings",
    "max_position_embeddings",
    "max_seq_len",
    "seq_length",
    "model_max_length",
)


def train_length_of(config: Any) -> int:
    """Return the training length of a model in tokens.

    The rope parameters' or the config's `original_max_position_embeddings` come first: a model that was stretched
    with YaRN or a similar scaling names there what it was trained with.

    Args:
        config: The model's transformers config.

    Raises:
        MethodError: The config names no length.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention") or rope  # some models have one set for each kind of layer
    original, *longest = (getattr(config, name, None) for name in _NAMES)
    # Phi-3's config has an original length by default, which says nothing where the longest is shorter.
    given = [int(value) for value in (rope.get(_NAMES[0]) or original, next(filter(None, longest), None)) if value]
    if given:
        return min(given)
    raise MethodError(
        f"the config of model type {getattr(config, 'model_type', '?')!r} names none of {', '.join(_NAMES)}; "
        "give train_length="
    )
