"""Which passes a call takes: every token goes through the model once, and rows that are alike go together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

import mesa_lm
from mesa_lm.attention.cache import WovenCache
from mesa_lm.attention.cache_layer import filled
from mesa_lm.attention.call import ForwardCall, WantedLogits
from mesa_lm.attention.encoding import Encoding
from mesa_lm.attention.layer_groups import LayerGroup, Layers
from mesa_lm.attention.model_pass import NewTokens
from mesa_lm.attention.pass_plan import PassPlan

CONFIG = LlamaConfig(max_position_embeddings=41)
MESA = {"first_chunk": 3, "chunk_width": 31, "last_chunk": 13}
NO_LAYERS = Layers((LayerGroup(Encoding(torch.device("cpu"), torch.float32)),), ())


def passes(lengths, name, cache=None, **options):
    """Plan a right-padded batch: for each pass its batch rows and its columns."""
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.ones(len(lengths), (0 if cache is None else cache.columns) + max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, mask.shape[1] - max(lengths) + length :] = 0
    method = mesa_lm.make_method(name, **options).bind(CONFIG)
    held = None if cache is None else filled(None, cache, method)
    call = ForwardCall(input_ids=ids, attention_mask=mask, cache=held)
    plan = PassPlan(call, WantedLogits(call), method, NO_LAYERS)
    found = []
    for model_pass, rows, columns, _ in plan.passes():
        found.append((rows.tolist(), columns))
        model_pass.finish()
    return plan.cache, found


@given(
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=4).filter(any),
    name=st.sampled_from(("mesa", "rerope", "dynamic_ntk")),
)
def test_every_token_goes_through_the_model_once_and_in_order(lengths, name):
    cache, found = passes(lengths, name)
    for row, length in enumerate(lengths):
        seen = [columns[i] for rows, columns in found for i, own in enumerate(rows) if own == row]
        assert [column for part in seen for column in part.tolist()] == list(range(length))
        assert cache.rows[row].length == length
    assert cache.columns == max(lengths)


def test_a_prompt_is_cut_into_first_middle_and_last_chunks():
    _, found = passes([109, 109], "mesa", **MESA)
    shapes = [(rows, tuple(columns.shape)) for rows, columns in found]
    assert shapes == [([0, 1], (2, 3)), ([0, 0, 0, 1, 1, 1], (6, 31)), ([0, 1], (2, 13))]


def test_rows_with_a_cache_are_continued_beside_prompts(monkeypatch):
    monkeypatch.setattr("mesa_lm.attention.pass_plan.PASS_TOKENS", 20)
    cache, _ = passes([0, 50, 50], "rerope")
    _, found = passes([30, 7, 7], "rerope", cache)
    shapes = [(rows, tuple(columns.shape)) for rows, columns in found]
    assert shapes == [([1, 2], (2, 7)), ([0], (1, 20)), ([0], (1, 10))]


def test_a_long_continuation_is_appended_in_pieces_no_longer_than_a_last_chunk():
    cache, _ = passes([109], "mesa", **MESA)
    _, found = passes([30], "mesa", cache, **MESA)
    assert [columns.shape[1] for _, columns in found] == [13, 13, 4]


@pytest.mark.parametrize(
    ("lengths", "kinds", "runs"),
    [
        ([5, 5, 7, 7], None, [(0, 2), (2, 4)]),
        ([5, 5, 5, 5], ["a", "b", "b", "b"], [(0, 1), (1, 4)]),
        ([5, 7, 5, 5], None, [(0, 1), (1, 2), (2, 4)]),
    ],
)
def test_one_kernel_call_serves_neighbours_that_are_alike(lengths, kinds, runs):
    cache = WovenCache(6)
    rows = [0, 1, 2, 3]
    for row, length in zip(rows, lengths, strict=True):
        cache.rows[row].length = length
    assert NewTokens(cache, rows, 1, [9] * 4).neighbours(kinds) == [slice(*run) for run in runs]


def test_rows_apart_in_the_cache_are_no_neighbours():
    cache = WovenCache(6)
    assert NewTokens(cache, [0, 1, 4], 1, [9] * 3).neighbours() == [slice(0, 2), slice(2, 3)]
