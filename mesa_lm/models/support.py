"""Which methods run on which models: checked for one config, and as a table of all families."""

from __future__ import annotations

from typing import Any, NamedTuple

from mesa_lm.errors import ModelError
from mesa_lm.methods.base import Method
from mesa_lm.methods.registry import available_methods
from mesa_lm.models.families import FAMILIES, REFUSED, Family, family_of, layer_windows, rope_sets

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "dynamic", "longrope")
_WINDOWS = {"none": "", "by layer": "sliding windows in some layers", "all layers": "sliding windows"}


class FamilyRow(NamedTuple):
    """One line of the table of families.

    Attributes:
        model_type: As in a config; falcon has two lines.
        position: Its position encoding, in words.
        about: What else sets it apart.
        refusals: For each method by name why it is refused, None where it is supported.
    """

    model_type: str
    position: str
    about: str
    refusals: dict[str, str | None]


def check_supported(config: Any, method: Method | None = None) -> None:
    """Check that methods other than `origin` can run on models of this kind.

    Args:
        config: A transformers config.
        method: The method; None checks only the model.

    Raises:
        ModelError: The model type, its rotary scaling, one of its attention's features or the method on it is not
            supported.
    """
    family = family_of(config)
    for kind, parameters in rope_sets(config).items():
        _check_rope_type(config.model_type, kind, parameters.get("rope_type", "default"), method)
    objection = family.objection(config)
    if objection is not None:
        raise ModelError(f"model type {config.model_type!r} {objection}")
    if getattr(config, "use_bidirectional_attention", None):
        raise ModelError(f"model type {config.model_type!r} with use_bidirectional_attention is not supported")
    layer_windows(config)
    if method is None:
        return
    alibi = family.uses_alibi(config)
    reason = _reason_against(method, family, alibi)
    if reason is not None:
        allowed = [
            name for name, other in available_methods().items() if _reason_against(other(), family, alibi) is None
        ]
        raise ModelError(
            f"method {method.name!r} is not supported on model type {config.model_type!r}: {reason}; supported are "
            f"{', '.join(allowed)}"
        )


def _check_rope_type(model_type: str, kind: str | None, rope_type: str, method: Method | None) -> None:
    if rope_type not in ROPE_TYPES:
        where = f" in {kind} layers" if kind else ""
        raise ModelError(
            f"model type {model_type!r} with rope_type {rope_type!r}{where} is not supported; supported "
            f"are {', '.join(ROPE_TYPES)}"
        )
    stale = getattr(method, "cached_keys", None) == "stale"
    if stale and rope_type in ("dynamic", "longrope"):
        raise ModelError(
            f"method 'dynamic_ntk' with cached_keys=stale is not supported on rope_type {rope_type!r}, where "
            "cached keys follow the input's length; leave cached_keys out"
        )


def _reason_against(method: Method, family: Family, alibi: bool) -> str | None:
    """Return why a method is refused on models of a family with (or without) ALiBi, None where it is supported."""
    if not method.scales_frequencies and not method.places_pairs:
        return None
    does = "places each rotary frequency by itself" if method.places_pairs else "scales rotary frequencies"
    if alibi:
        return f"it {does}, and ALiBi has none"
    if family.is_remote_code and method.static_rope:
        return "it replaces a model's rotary frequencies, and remote code keeps its own"
    if family.plain_full_layers:
        return f"it {does}, and the layers that see everything have none"
    return None


def family_rows() -> list[FamilyRow]:
    """Return which methods every family supports, and the types that are refused altogether."""
    rows = []
    for model_type, family in FAMILIES.items():
        for alibi in family.position_kinds:
            position = "ALiBi" if alibi else "rotary, interleaved" if family.interleaved else "rotary"
            about = ", ".join(text for text in (family.about, _WINDOWS[family.windows]) if text)
            refusals = {name: _reason_against(method(), family, alibi) for name, method in available_methods().items()}
            rows.append(FamilyRow(model_type, position, about, refusals))
    for model_type, reason in REFUSED.items():
        refusals = {name: None if name == "origin" else reason for name in available_methods()}
        rows.append(FamilyRow(model_type, "", "", refusals))
    return rows


def family_markdown(rows: list[FamilyRow]) -> str:
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
