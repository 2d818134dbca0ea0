"""Rotary scaling at every length, by transformers' own rope functions: linear, NTK-aware, YaRN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from typing_extensions import override

from mesa_lm.errors import MethodError
from mesa_lm.methods.base import Kind, ScaledMethod
from mesa_lm.methods.parameters import parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling(ScaledMethod):
    """Other rotary frequencies at every length; the model runs as it is, but for log-n scaling."""

    kind: ClassVar[Kind] = "scaling"
    log_n: bool = parameter(False, "scale the query at index t by max(1, ln(t+1) / ln T)")

    @property
    @override
    def static_rope(self) -> bool:
        return not self.log_n

    @property
    @override
    def depends_on_length(self) -> bool:
        return False

    @override
    def is_untouched(self, kv_len: int, cached: bool) -> bool:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScaling(RopeScaling):
    """Divide every position by `factor`, within T as well.

    Source: position interpolation, arXiv 2306.15595; rope type "linear" of transformers.
    """

    name: ClassVar[str] = "linear"

    factor: float = parameter(
        8.0, "by which positions are divided; the training length times it is reached", at_least=1
    )

    @override
    def longest_input(self, config: Any) -> float:
        return self.factor * self.train_length

    @override
    def rope_parameters(self, config: Any, total: int) -> dict[str, Any]:
        return {"rope_type": "linear", "factor": float(self.factor)}


@dataclass(frozen=True, slots=True, kw_only=True)
class NTKScaling(RopeScaling):
    """Stretch the low frequencies by `factor` and leave the highest, by a larger rotary base at every length.

    The base is multiplied by factor^(d / (d - 2)) for d rotated components.

    Source: NTK-aware scaling, bloc97 2023, as in arXiv 2309.00071, section 3.1.
    """

    name: ClassVar[str] = "ntk"

    factor: float = parameter(8.0, "by which the lowest frequency is divided", at_least=1)

    @override
    def longest_input(self, config: Any) -> float:
        return self.factor * self.train_length

    @override
    def rope_parameters(self, config: Any, total: int) -> dict[str, Any]:
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        rotary_dim = int(head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))
        base = config.rope_parameters["rope_theta"] * self.factor ** (rotary_dim / (rotary_dim - 2))
        return {"rope_type": "default", "rope_theta": base}


@dataclass(frozen=True, slots=True, kw_only=True)
class YaRN(RopeScaling):
    """Divide the low frequencies by `factor`, leave the high ones, and sharpen attention, at every length.

    Source: arXiv 2309.00071; rope type "yarn" of transformers.
    """

    name: ClassVar[str] = "yarn"

    factor: float = parameter(16.0, "by which low frequencies are divided", at_least=1)
    beta_fast: float = parameter(32.0, "turns within T from which on a frequency is left as it is", at_least=0.001)
    beta_slow: float = parameter(1.0, "turns within T below which a frequency is divided entirely", at_least=0.001)
    attention_factor: float | Literal["ntk_by_parts"] | None = parameter(
        None,
        "factor of cos and sin; none: 0.1 ln(factor) + 1; ntk_by_parts: 1, which is NTK-by-parts scaling",
        at_least=0.01,
        at_most=100,
    )
    mscale: float | None = parameter(
        None, "with mscale_all_dim: two-parameter form of the attention factor", at_least=0.001, at_most=100
    )
    mscale_all_dim: float | None = parameter(None, "see mscale", at_least=0.001, at_most=100)
    truncate: bool = parameter(True, "round the range between beta_fast and beta_slow to whole components")

    @override
    def check_together(self) -> None:
        if self.beta_fast < self.beta_slow:
            raise MethodError(f"yarn: beta_fast must be at least beta_slow={self.beta_slow}, found {self.beta_fast}")
        scales = {name: getattr(self, name) for name in ("mscale", "mscale_all_dim")}
        missing = [name for name, value in scales.items() if value is None]
        if len(missing) == 1:
            raise MethodError(f"yarn: mscale and mscale_all_dim go together; give {missing[0]} as well, or neither")
        if not missing and self.attention_factor is not None:
            raise MethodError(
                "yarn: attention_factor takes the place of mscale and mscale_all_dim; leave one of them out"
            )

    @override
    def longest_input(self, config: Any) -> float:
        return self.factor * self.train_length

    @override
    def rope_parameters(self, config: Any, total: int) -> dict[str, Any]:
        optional = {name: getattr(self, name) for name in ("attention_factor", "mscale", "mscale_all_dim")}
        if self.attention_factor == "ntk_by_parts":
            optional["attention_factor"] = 1.0
        return {
            "rope_type": "yarn",
            "factor": float(self.factor),
            "original_max_position_embeddings": self.train_length,
            "beta_fast": float(self.beta_fast),
            "beta_slow": float(self.beta_slow),
            "truncate": self.truncate,
            **{name: value for name, value in optional.items() if value is not None},
        }
