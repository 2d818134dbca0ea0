"""Rotary scaling at every length, by transformers' own rope functions: linear, NTK-aware, YaRN."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from mesa_lm.errors import MethodError
from mesa_lm.methods.base import Method
from mesa_lm.methods.parameters import (
    bound_int,
    parameter,
    require_bool,
    require_int,
    require_number,
    train_length_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling(Method):
    """Divide every position by `factor`, within the training length as well.

    Source: position interpolation, arXiv 2306.15595; rope type "linear" of transformers.
    """

    name: ClassVar[str] = "linear"
    static_rope: ClassVar[bool] = True

    factor: float = parameter(8.0, "by which positions are divided; the training length times it is reached")

    def __post_init__(self) -> None:
        require_number(self, "factor", 1)

    def longest_input(self, config: Any) -> float:
        """See `Method.longest_input`: `factor` times T."""
        return self.factor * train_length_of(config)

    def rope_parameters(self, config: Any, total: int) -> dict[str, Any]:
        """See `Method.rope_parameters`."""
        return {"rope_type": "linear", "factor": float(self.factor)}


@dataclass(frozen=True, slots=True, kw_only=True)
class NTKScaling(Method):
    """Stretch the low frequencies by `factor` and leave the highest, by a larger rotary base at every length.

    The base is multiplied by factor^(d / (d - 2)) for d rotated components.

    Source: NTK-aware scaling, bloc97 2023, as in arXiv 2309.00071, section 3.1.
    """

    name: ClassVar[str] = "ntk"
    static_rope: ClassVar[bool] = True

    factor: float = parameter(8.0, "by which the lowest frequency is divided")

    def __post_init__(self) -> None:
        require_number(self, "factor", 1)

    def longest_input(self, config: Any) -> float:
        """See `Method.longest_input`: `factor` times T."""
        return self.factor * train_length_of(config)

    def rope_parameters(self, config: Any, total: int) -> dict[str, Any]:
        """See `Method.rope_parameters`."""
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        rotary_dim = int(head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))
        base = config.rope_parameters["rope_theta"] * self.factor ** (rotary_dim / (rotary_dim - 2))
        return {"rope_type": "default", "rope_theta": base}


@dataclass(frozen=True, slots=True, kw_only=True)
class YaRN(Method):
    """Divide the low frequencies by `factor`, leave the high ones, and sharpen attention, at every length.

    Source: arXiv 2309.00071; rope type "yarn" of transformers.
    """

    name: ClassVar[str] = "yarn"
    static_rope: ClassVar[bool] = True

    train_length: int | None = parameter(None, "training length T in tokens; None: from the model's config")
    factor: float = parameter(16.0, "by which low frequencies are divided")
    beta_fast: float = parameter(32.0, "turns within T from which on a frequency is left as it is")
    beta_slow: float = parameter(1.0, "turns within T below which a frequency is divided entirely")
    attention_factor: float | None = parameter(None, "factor of cos and sin; None: 0.1 ln(factor) + 1")
    mscale: float | None = parameter(None, "with mscale_all_dim: two-parameter form of the attention factor")
    mscale_all_dim: float | None = parameter(None, "see mscale")
    truncate: bool = parameter(True, "round the range between beta_fast and beta_slow to whole components")

    def __post_init__(self) -> None:
        require_int(self, "train_length", 1, optional=True)
        for name in ("factor", "beta_fast", "beta_slow"):
            require_number(self, name, 1 if name == "factor" else 0)
        for name in ("attention_factor", "mscale", "mscale_all_dim"):
            require_number(self, name, 0, optional=True)
        require_bool(self, "truncate")
        if self.beta_fast < self.beta_slow:
            raise MethodError(f"yarn: beta_fast must be at least beta_slow={self.beta_slow}, found {self.beta_fast}")

    def resolve(self, config: Any) -> Self:
        """Fill in T; see `Method.resolve`."""
        return replace(self, train_length=self.train_length or train_length_of(config))

    def longest_input(self, config: Any) -> float:
        """See `Method.longest_input`: `factor` times T."""
        return self.factor * bound_int(self, "train_length")

    def rope_parameters(self, config: Any, total: int) -> dict[str, Any]:
        """See `Method.rope_parameters`."""
        optional = {name: getattr(self, name) for name in ("attention_factor", "mscale", "mscale_all_dim")}
        return {
            "rope_type": "yarn",
            "factor": float(self.factor),
            "original_max_position_embeddings": self.train_length,
            "beta_fast": float(self.beta_fast),
            "beta_slow": float(self.beta_slow),
            "truncate": self.truncate,
            **{name: value for name, value in optional.items() if value is not None},
        }
