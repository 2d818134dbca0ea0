"""Few kernels: what every method launches, counted on the path that CUDA takes, beside transformers alone."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from command_line import run
from transformers import LlamaConfig

import mesa_lm
from mesa_lm.attention.encoding import rotate
from mesa_lm.studies.bench.kernel_calls import count_run

CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=4096,
)
LENGTH = 16384


class Most(NamedTuple):
    """The most calls that a method may have, of a layer; transformers alone has 40.

    Attributes:
        decode: For a decoded token.
        prefill: For each prefill pass, on average.
        passes: Prefill passes of a prompt.
        length: Tokens of the prompt.
        copies: To the device for a decoded token.
        waits: For a decoded token, in two layers.
    """

    decode: int
    prefill: int
    passes: int = 2
    length: int = LENGTH
    copies: int = 1
    waits: int = 0


BANDS = Most(60, 120)
MOST = {
    "origin": Most(40, 40, passes=1),
    "mesa": Most(44, 48, passes=4),  # first chunk, middle chunks twice, last chunk
    "rerope": BANDS,
    "leaky_rerope": BANDS,
    "self_extend": BANDS,
    "lm_infinite": BANDS,
    "streaming_llm": BANDS,
    "dual_chunk": BANDS,
    "dynamic_ntk": Most(50, 60),
    "stair": Most(60, 1500, passes=1, length=8192),
    "linear": Most(40, 40, passes=1),
    "ntk": Most(40, 40, passes=1),
    "yarn": Most(40, 40, passes=1),
    # Pieces are passes; three bands or one, what is chosen, and attention that keys receive.
    "infllm": Most(145, 165, passes=33, copies=7),
    "reattention": Most(155, 160, passes=58, copies=4, waits=2),
    "gali": Most(60, 75, passes=7),
    "string": BANDS,
    "dpe": BANDS,
    "lampe": BANDS,
    "star": Most(44, 48, passes=5),  # block 0, later ones twice, the last and narrower one, the query
}


@pytest.fixture(scope="module")
def stock():
    return count_run(CONFIG, None, "bfloat16", 1, LENGTH)


@pytest.mark.parametrize("name", mesa_lm.available_methods())
def test_no_method_launches_many_kernels(name, stock):
    most = MOST[name]
    counted = count_run(CONFIG, mesa_lm.make_method(name).bind(CONFIG), "bfloat16", 1, most.length)
    assert counted.decode_layer_calls <= most.decode
    assert counted.prefill_layer_calls <= most.passes * most.prefill
    assert counted.decode_wait_calls == most.waits
    assert counted.prefill_wait_calls == most.waits * (most.passes - 1)
    assert counted.decode_copy_calls <= most.copies
    if name == "mesa":
        assert counted.decode_fixed_calls <= stock.decode_fixed_calls + 10


def test_calls_of_transformers_are_those_of_its_code(stock):
    """Seven products, two norms, a rotation of queries and keys, one attention kernel and two appended states."""
    assert (stock.decode_wait_calls, stock.decode_copy_calls) == (0, 0)
    assert stock.decode_layer_calls == count_run(CONFIG, None, "bfloat16", 3, 64).decode_layer_calls
    assert stock.decode_layer_calls == stock.prefill_layer_calls == 40


def test_a_wait_for_the_device_and_a_copy_to_it_are_seen(monkeypatch):
    def waiting(states, angles):
        return rotate(states, angles) if bool(states.sum() != 0) else states

    monkeypatch.setattr("mesa_lm.attention.decode_pass.rotate", waiting)
    counted = count_run(CONFIG, mesa_lm.make_method("rerope").bind(CONFIG), "bfloat16", 1, 6000)
    assert counted.decode_wait_calls > 0 and counted.prefill_wait_calls == 0 and counted.prefill_copy_calls > 0


def test_the_command_prints_and_saves_calls(tmp_path):
    chosen = ("bench", "--calls", "--method", "stock", "--method", "mesa", "--lengths", "3k", "--out", tmp_path)
    printed = json.loads(run(*chosen, "--json").stdout)
    cells = {cell["method"]: cell for cell in printed["cells"]}
    assert cells["mesa"]["prefill_layer_calls"] > cells["stock"]["prefill_layer_calls"]
    (saved,) = (json.loads(Path(path).read_text()) for path in printed["files"] if "mesa" in path)
    assert saved["results"]["bench_bfloat16_b1_3k"]["decode_copy_calls,none"] == 1.0
    assert "kernel calls of a layer" in run(*chosen).stdout
