"""Processes that share prompts compute what one process does alone."""

import random
from multiprocessing.connection import wait

import pytest
import rank_cases
import torch
from gang import Gang
from helpers import random_ids
from zoo import VARIANTS

from mesa_lm.methods.geometry import Layout

MESA = {"first_chunk": 3, "last_chunk": 7}
WINDOWED = {"mistral-window", "qwen2-window", "gemma2", "gemma3_text", "cohere2", "olmo3"}
QUICK = ("llama", "llama-dynamic", "phi3-longrope", "gpt_neox", "falcon-alibi", "mpt", "bloom")
SHARED = sorted(set(VARIANTS) - WINDOWED)


def drawn(seed: int) -> tuple:
    """A model, parameters, the rows of a batch and tokens to decode."""
    draw = random.Random(seed)
    first, last = draw.randint(1, 9), draw.randint(1, 13)
    options = {"first_chunk": first, "last_chunk": last}
    if seed % 2:
        options["chunk_width"] = draw.randint(1, 41 - first)
    if seed % 3 == 0:
        options["reweave_every"] = draw.randint(1, 4)
    if seed % 5 == 0:
        options["weave"] = draw.choice(["rerope", "leaky_rerope", "self_extend"])
    rows = [random_ids(draw.randint(1, 300), seed=seed + i) for i in range(draw.randint(1, 4))]
    model = {"kv_heads": draw.choice([1, 2, 4]), "family": draw.choice(["llama", "qwen3"])}
    return model, "mesa", options, rows, random_ids(draw.randint(0, 30), seed=seed + 9)


def assert_alike(found: list, expected: torch.Tensor, atol: float = 1e-5) -> None:
    for other in found[1:]:
        assert torch.equal(other, found[0]), "every process has the same bits"
    torch.testing.assert_close(found[0], expected, atol=atol, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_logits_of_prefill_and_decoding_are_those_of_one_process(gang, size):
    for seed in range(10 * size, 10 * size + 6):
        case = drawn(seed)
        assert_alike(gang.run(rank_cases.logits, *case, size=size), rank_cases.logits(None, *case))


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_logits_of_many_prompts(gang, size):
    for seed in range(1000 * size, 1000 * size + 60):
        case = drawn(seed)
        assert_alike(gang.run(rank_cases.logits, *case, size=size), rank_cases.logits(None, *case))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in SHARED]
)
def test_every_family(gang, name):
    case = (name, "mesa", MESA, [random_ids(97), random_ids(41, seed=1)], random_ids(5, seed=2))
    assert_alike(gang.run(rank_cases.logits, *case, size=3), rank_cases.logits(None, *case), atol=1e-4)


@pytest.mark.parametrize("name", ["gemma2", "mistral-window"])
def test_layers_with_a_window_are_refused(gang, name):
    told, _ = gang.run(rank_cases.refused, name, "mesa", MESA, random_ids(97), size=2)
    assert told.startswith("ModelError") and "has layers with a sliding window" in told


@pytest.mark.parametrize("method", ["rerope", "origin", "yarn", "streaming_llm"])
def test_methods_without_chunks_are_refused(gang, method):
    told, _ = gang.run(rank_cases.refused, {}, method, {}, random_ids(97), size=2)
    assert told.startswith("MethodError") and "process_group is for methods that cut prompts into chunks" in told


@pytest.mark.parametrize("options", [MESA, {**MESA, "variant": "released"}], ids=["paper", "released"])
def test_rows_padded_on_the_right(gang, options):
    case = ({}, "mesa", options, [random_ids(97), random_ids(20, seed=1)], random_ids(0), "right")
    found, expected = gang.run(rank_cases.logits, *case, size=2), rank_cases.logits(None, *case)
    assert_alike([logits[0] for logits in found], expected[0])
    assert_alike([logits[1, :20] for logits in found], expected[1, :20])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes(gang, dtype):
    case = ({"dtype": dtype}, "mesa", MESA, [random_ids(97), random_ids(97, seed=1)], random_ids(5, seed=2))
    atol = {torch.float64: 1e-12, torch.bfloat16: 0.2, torch.float16: 0.04}[dtype]
    assert_alike(gang.run(rank_cases.logits, *case, size=2), rank_cases.logits(None, *case), atol)


@pytest.mark.parametrize("kept", [1, 30, torch.tensor([3, 50, 3, 96])], ids=["last", "thirty", "chosen"])
def test_logits_to_keep(gang, kept):
    case = ({}, "mesa", MESA, [random_ids(97), random_ids(97, seed=1)], random_ids(2), "left", kept)
    assert_alike(gang.run(rank_cases.logits, *case, size=3), rank_cases.logits(None, *case))


@pytest.mark.parametrize("lengths", [(97, 150), (20, 38)], ids=["prompts", "from-within-T"])
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True}], ids=["greedy", "beams", "sampling"])
def test_generation_across_a_reweave(gang, lengths, settings):
    rows = [random_ids(length, seed=length) for length in lengths]
    case = ({}, "mesa", MESA, rows)
    settings = {"max_new_tokens": 64, **settings}
    expected_ids, expected = rank_cases.generated(None, *case, settings)
    for ids, logits in gang.run(rank_cases.generated, *case, settings, size=2):
        assert torch.equal(ids, expected_ids)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_pieces_after_the_prompt_go_round_the_processes(gang):
    pieces = [random_ids(length, seed=length) for length in (97, 50, 1, 30, 7)]
    case = ({}, "mesa", MESA, pieces)
    assert_alike(gang.run(rank_cases.turns, *case, size=3), rank_cases.turns(None, *case))


STARS = {
    "query": {"block_size": 13, "query_length": 5},
    "anchor": {"block_size": 19, "anchor_block_size": 4, "query_length": 7, "log_n": True},
    "scaled": {"block_size": 11, "query_length": 3, "scaling": "yarn", "factor": 4.0},
}


@pytest.mark.parametrize("options", STARS.values(), ids=STARS)
def test_star_shares_prompts_too(gang, options):
    case = ({}, "star", options, [random_ids(97), random_ids(60, seed=1)], random_ids(9, seed=2))
    assert_alike(gang.run(rank_cases.logits, *case, size=3), rank_cases.logits(None, *case))


def test_a_cache_is_cropped(gang):
    case = ({}, "star", STARS["query"], random_ids(97), random_ids(600, seed=1), random_ids(9, seed=2))
    assert_alike(gang.run(rank_cases.cropped, *case, size=2), rank_cases.cropped(None, *case))


def test_chunks_are_reused(gang):
    document = random_ids(211)
    prompts = [torch.cat([document, random_ids(length, seed=length)]) for length in (3, 5, 7)]
    case = ({}, "mesa", {**MESA, "chunk_width": 31}, prompts)
    expected, hits = rank_cases.reused(None, *case)
    found = gang.run(rank_cases.reused, *case, size=2)
    assert_alike([logits for logits, _ in found], expected)
    assert 0 < sum(own for _, own in found) <= hits


@pytest.mark.parametrize("size", [2, 4])
def test_each_process_holds_its_share(gang, size):
    row = random_ids(1000)
    case = ({}, "mesa", MESA, row)
    found = gang.run(rank_cases.held, *case, size=size)
    first, width = 3, 38
    assert sum(slots for slots, _ in found) == 1000 + first * (size - 1)
    for slots, room in found:
        assert slots <= first + 1000 / size + width and room <= slots + width + 64


def test_other_tokens_on_another_process_are_refused(gang):
    for told in gang.run(rank_cases.refused, {}, "mesa", MESA, random_ids(97), True, size=2):
        assert told.startswith("ModelError: the processes that share this prompt were given different tokens")


def test_a_process_that_ends_ends_the_others_soon(tmp_path):
    gang = Gang(3, tmp_path)
    try:
        gang.run(rank_cases.held, {}, "mesa", MESA, random_ids(97))  # they are there
        ends = gang.begin(rank_cases.without_end, random_ids(97))
        assert not ends[0].poll(3), "they run"
        gang.processes[1].kill()
        left = [ends[0], ends[2]]
        while left:
            (end, *_) = wait(left, timeout=60)
            left.remove(end)
            failed, (told, seconds) = end.recv()
            assert not failed and seconds < 30
            assert told.startswith("LostRankError: an exchange with the processes that share")
            gang.processes[ends.index(end)].kill()  # as the error would end it
    finally:
        gang.close()


def test_chunks_are_shared_out_whole():
    for middle, narrow, size in ((7, 3, 3), (1, 0, 4), (0, 5, 2), (0, 0, 2), (12, 0, 5)):
        layout = Layout(first=3, width=11, middle=middle, narrow=narrow)
        shares = [range(layout.chunks * rank // size, layout.chunks * (rank + 1) // size) for rank in range(size)]
        found = [block for share in shares for block in layout.blocks(30, share)]
        expected = [
            index
            for block in layout.blocks(30)
            for index in range(block.start, block.start + block.width * block.chunks)
        ]
        assert [i for block in found for i in range(block.start, block.start + block.width * block.chunks)] == expected
