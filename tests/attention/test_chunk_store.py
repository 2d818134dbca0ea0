"""Reusing middle chunks: the logits stay what they are, and what is shared is not computed again."""

import pytest
import torch
from helpers import random_ids
from tiny_models import FAMILIES, tiny_model

import mesa_lm
from mesa_lm.attention.chunk_store import ChunkStore, split_by_store
from mesa_lm.methods.geometry import Block

DOCUMENT = random_ids(211)
QUESTIONS = [torch.cat([DOCUMENT, random_ids(length, seed=length)]) for length in (3, 5, 7)]
MESA = {"train_length": 41, "first_chunk": 3, "chunk_width": 31, "last_chunk": 13}


def logits(model, prompts, **call):
    with torch.no_grad():
        return [model(prompt[None], **call).logits for prompt in prompts]


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("kept", [1, 0], ids=["last", "all"])
def test_logits_are_the_same_with_and_without(family, kept):
    model = tiny_model(family, sliding_window=None)
    with mesa_lm.extrapolate(model, "mesa", **MESA) as handle:
        expected = logits(model, QUESTIONS, logits_to_keep=kept)
        handle.reuse_chunks(2**20)
        found = logits(model, QUESTIONS, logits_to_keep=kept)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert handle.store.hits > 0


def test_shared_chunks_are_not_computed_again(llama):
    tokens = []
    hook = llama.model.layers[0].register_forward_pre_hook(lambda _, args: tokens.append(args[0].shape[:2].numel()))
    with mesa_lm.extrapolate(llama, "mesa", **MESA) as handle:
        handle.reuse_chunks(2**20)
        counts = []
        for prompt in QUESTIONS:
            tokens.clear()
            logits(llama, [prompt], logits_to_keep=1)
            counts.append(sum(tokens))
    hook.remove()
    middle = 31 * 6  # in 211 - 3 - 13 tokens and some more
    assert counts == [len(QUESTIONS[0]), len(QUESTIONS[1]) - middle, len(QUESTIONS[2]) - middle]
    assert (handle.store.hits, handle.store.misses) == (12, 9)  # and a narrow chunk of each, which holds the question


def test_a_growing_document_shares_its_chunks(llama):
    with mesa_lm.extrapolate(llama, "mesa", **MESA) as handle:
        expected = logits(llama, [DOCUMENT[:n] for n in (83, 113, 149, 211)])
        handle.reuse_chunks(2**20)
        found = logits(llama, [DOCUMENT[:n] for n in (83, 113, 149, 211)], logits_to_keep=1)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one[:, -1], other[:, -1], atol=1e-5, rtol=1e-5)
    assert handle.store.hits == 2 + 3 + 4


@pytest.mark.parametrize("scaling", ["none", "yarn"])
def test_blocks_at_true_positions_are_shared_where_they_stand(llama, scaling):
    """A block of Star Attention is found again at its place, not elsewhere."""
    block = random_ids(17, seed=1)
    document = torch.cat([DOCUMENT[:17], *[block] * 5])
    prompts = [torch.cat([document, random_ids(length, seed=length)]) for length in (9, 13)]
    star = {"block_size": 17, "anchor_block_size": 11, "query_length": 7, "scaling": scaling}
    with mesa_lm.extrapolate(llama, "star", **star) as handle:
        expected = logits(llama, prompts, logits_to_keep=1)
        handle.reuse_chunks(2**20)
        found = logits(llama, prompts, logits_to_keep=1)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert handle.store.hits == 5


def test_rows_of_a_batch_share_and_differ(llama):
    other = torch.cat([random_ids(100, seed=1), DOCUMENT[100:]])
    batch = torch.stack([DOCUMENT, other])
    with mesa_lm.extrapolate(llama, "mesa", **MESA) as handle, torch.no_grad():
        expected = llama(batch, logits_to_keep=1).logits
        handle.reuse_chunks(2**20)
        llama(DOCUMENT[None], logits_to_keep=1)
        found = [llama(batch, logits_to_keep=1).logits for _ in range(2)]
    for one in found:
        torch.testing.assert_close(one, expected, atol=1e-5, rtol=1e-5)


def test_decoding_after_reuse(llama):
    with mesa_lm.extrapolate(llama, "mesa", **MESA) as handle:
        expected = llama.generate(QUESTIONS[1][None], max_new_tokens=17, eos_token_id=None)
        handle.reuse_chunks(2**20)
        logits(llama, QUESTIONS[:1], logits_to_keep=1)
        assert torch.equal(llama.generate(QUESTIONS[1][None], max_new_tokens=17, eos_token_id=None), expected)
    assert handle.store.hits == 6


def states(size):
    return {0: (torch.zeros(1, size, 1), torch.zeros(1, size, 1))}  # 8 bytes per token


def test_the_budget_holds_and_the_oldest_goes_first():
    store = ChunkStore(3 * 8 * 7)
    for name in (b"a", b"b", b"c"):
        store.start_prompt()
        store.keep(name, states(7))
    assert store.held_bytes == store.budget_bytes
    store.start_prompt()
    assert store.find(b"a")
    store.keep(b"d", states(7))
    assert store.held_bytes == store.budget_bytes
    assert [store.find(name) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]


def test_a_prompt_larger_than_the_budget_keeps_its_beginning():
    store = ChunkStore(2 * 8 * 7)
    store.start_prompt()
    for name in (b"a", b"b", b"c"):
        store.keep(name, states(7))
    assert store.find(b"a") and store.find(b"b") and not store.find(b"c")
    store.keep(b"e", states(7 * 3))
    assert store.held_bytes == 2 * 8 * 7


def test_a_store_that_helps_nobody_is_emptied():
    store = ChunkStore(2**20)
    for number in range(20):
        store.start_prompt()
        store.keep(bytes([number]), states(7))
    assert store.held_bytes == 0 and not store.is_worthwhile


def test_names_depend_on_where_the_first_chunk_ends():
    tokens = random_ids(11)
    name = ChunkStore.name(tokens[:5], tokens[5:], 5)
    assert name != ChunkStore.name(tokens[:6], tokens[6:], 5)
    assert name != ChunkStore.name(tokens[:5], tokens[5:], 6)
    assert name == ChunkStore.name(tokens[:5].clone(), tokens[5:].clone(), 5)


def test_neighbours_of_a_kind_stay_together():
    store = ChunkStore(2**20)
    for name in (b"a", b"b", b"e"):
        store.keep(name, states(7))
    parts = list(split_by_store(store, [b"a", b"b", b"c", b"d", b"e"], Block(3, 7, 5), [True] * 4 + [False]))
    assert [part.block for part in parts] == [Block(3, 7, 2), Block(17, 7, 3)]
    assert [len(part.states) for part in parts] == [2, 0]
