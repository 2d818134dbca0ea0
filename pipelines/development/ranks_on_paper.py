"""Compute, not measure, what one long prompt takes on several GPUs, and print it as Markdown.

    python -m mesa_lm.pipelines.development.ranks_on_paper --tokens 1024k

The work and the bytes follow from a shape and from Mesa's layout; the rates are assumptions that the options change.
"""

import argparse
from dataclasses import dataclass
from typing import Any

from transformers import LlamaConfig

from mesa_lm.lengths import parse_length
from mesa_lm.methods.mesa import Mesa

# https://huggingface.co/meta-llama/Meta-Llama-3-8B and Meta-Llama-3-70B
LLAMA_3_8B: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
LLAMA_3_70B: dict[str, Any] = {
    **LLAMA_3_8B,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
GPU_BYTES = 80e9


@dataclass(frozen=True, slots=True, kw_only=True)
class GPURates:
    """What a GPU is assumed to do.

    Attributes:
        flops: Of matrix products and attention kernels in 16 bits, per second.
        memory: Bytes per second from its own memory.
        link: Bytes per second from another GPU.
        host: Bytes per second from the host's memory.
        exchange_s: Least time of one exchange among GPUs.
    """

    flops: float
    memory: float
    link: float
    host: float
    exchange_s: float


@dataclass(frozen=True, slots=True)
class LlamaWork:
    """A Llama as far as work and bytes go, in 16 bits.

    Attributes:
        config: Its config.
    """

    config: LlamaConfig

    @property
    def kv_share(self) -> float:
        """How wide keys or values are, against the hidden size."""
        return (self.config.num_key_value_heads or self.config.num_attention_heads) / self.config.num_attention_heads

    @property
    def weights(self) -> int:
        """Numbers in the matrices of all layers."""
        c = self.config
        attention = 2 * c.hidden_size**2 * (1 + self.kv_share)
        return int(c.num_hidden_layers * (attention + 3 * c.hidden_size * c.intermediate_size))

    @property
    def weight_bytes(self) -> int:
        """All weights, embeddings and output layer included."""
        return 2 * (self.weights + 2 * self.config.vocab_size * self.config.hidden_size)

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token."""
        c = self.config
        return int(2 * 2 * c.num_hidden_layers * c.hidden_size * self.kv_share)

    def attention_flops(self, pairs: float) -> float:
        """Work of so many pairs of a query and a key, in all layers."""
        return 4 * pairs * self.config.hidden_size * self.config.num_hidden_layers

    def exchanged(self, queries: int) -> int:
        """Bytes that each GPU sends in a layer: outputs and log-sum-exps in 32 bits."""
        c = self.config
        return int(4 * queries * (c.hidden_size + c.num_attention_heads))


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCost:
    """What one prompt takes on each of some GPUs.

    Attributes:
        prefill_s: Seconds of its prefill.
        repeated_s: Of these, what every GPU does likewise: first and last chunk, and the exchanges.
        step_s: Seconds of a decoded token.
        cache_bytes: Keys and values.
    """

    prefill_s: float
    repeated_s: float
    step_s: float
    cache_bytes: float


def cost(
    model: LlamaWork, tokens: int, ranks: int, rates: GPURates, divided: int = 1, offloaded: bool = False
) -> PromptCost:
    """Return what Mesa takes.

    Args:
        model: The model.
        tokens: Of the prompt.
        ranks: GPUs that share it.
        rates: Of each GPU.
        divided: GPUs over which every layer's heads and matrices are divided, beside that.
        offloaded: Whether keys and values lie in the host's memory.
    """
    layout = Mesa().bind(model.config).layout(tokens)
    assert layout is not None
    first, last = layout.first, tokens - layout.last_start
    middle = layout.last_start - first
    shared = 2 * model.weights * middle + model.attention_flops(middle * (first + layout.width / 2))
    held = layout.last_start / ranks
    repeated = 2 * model.weights * (first + last) + model.attention_flops(first**2 / 2 + last * held + last**2 / 2)
    layers = model.config.num_hidden_layers
    # Divided matrices are added up twice in a layer, by a ring.
    summed = 4 * middle / ranks * model.config.hidden_size * layers * 2 if divided > 1 else 0.0
    exchange_s = layers * (rates.exchange_s + (ranks - 1) * model.exchanged(last) / rates.link) if ranks > 1 else 0.0
    cache = tokens * model.token_bytes / ranks / divided
    from_host = cache / rates.host if offloaded else 0.0
    repeated_s = repeated / divided / rates.flops + exchange_s + from_host
    step_s = (model.weight_bytes / divided + cache) / rates.memory + from_host
    step_s += layers * rates.exchange_s * ((ranks > 1) + 2 * (divided > 1))
    return PromptCost(
        # Offloaded keys and values are written to the host once, and read once by the last chunk.
        prefill_s=shared / ranks / divided / rates.flops + summed / rates.link + from_host + repeated_s,
        repeated_s=repeated_s,
        step_s=step_s,
        cache_bytes=cache,
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=parse_length, default=2**20)
    parser.add_argument("--tflops", type=float, default=400.0, help="of one GPU in 16 bits")
    parser.add_argument("--memory-gbs", type=float, default=2500.0, help="from its own memory")
    parser.add_argument("--link-gbs", type=float, default=150.0, help="from another GPU")
    parser.add_argument("--host-gbs", type=float, default=40.0, help="from the host")
    parser.add_argument("--exchange-us", type=float, default=30.0, help="least time of an exchange")
    given = parser.parse_args()
    rates = GPURates(
        flops=given.tflops * 1e12,
        memory=given.memory_gbs * 1e9,
        link=given.link_gbs * 1e9,
        host=given.host_gbs * 1e9,
        exchange_s=given.exchange_us * 1e-6,
    )
    print("| shape | GPUs | prefill | of it repeated | decoded token | cache of each | weights of each | 80 GB |")
    print("|---|---|---|---|---|---|---|---|")
    small, large = LlamaWork(LlamaConfig(**LLAMA_3_8B)), LlamaWork(LlamaConfig(**LLAMA_3_70B))
    rows = [("8B", small, ranks, 1, False) for ranks in (1, 2, 4, 8, 16)]
    rows += [("8B, offloaded", small, 1, 1, True), ("8B, offloaded", small, 2, 1, True)]
    rows += [("70B, tp_plan", large, 1, divided, False) for divided in (4, 8)]
    for name, model, ranks, divided, offloaded in rows:
        found = cost(model, given.tokens, ranks, rates, divided, offloaded)
        weights = model.weight_bytes / divided
        needed = weights + (0 if offloaded else found.cache_bytes)
        print(
            f"| {name} | {ranks * divided} | {found.prefill_s:.1f} s | {found.repeated_s:.2f} s | "
            f"{found.step_s * 1e3:.1f} ms | {found.cache_bytes / 2**30:.1f} GiB | {weights / 2**30:.1f} GiB | "
            f"{'fits' if needed < 0.95 * GPU_BYTES else 'does not fit'} |"
        )


if __name__ == "__main__":
    main()
