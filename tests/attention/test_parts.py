"""Parts of bands: together they are what the band says, and few however many queries there are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesa_lm.attention.bands import Sum, attend_part
from mesa_lm.attention.kernels import Scoring, additive_mask
from mesa_lm.attention.parts import parts_of
from mesa_lm.methods.geometry import Extent
from mesa_lm.methods.registry import make_method

steps = st.sampled_from((0, 1, 1, 2, 7))
runs = st.lists(st.tuples(st.integers(1, 70), steps, steps), min_size=1, max_size=5)


def bounds(runs, first, width):
    """Bounds of a band whose queries' keys start and end `steps` later from one to the next, run by run."""
    start, end = [first], [first + width]
    for count, start_step, end_step in runs:
        for _ in range(count):
            start.append(start[-1] + start_step)
            end.append(end[-1] + end_step)
    return torch.tensor(start), torch.tensor(end)


def counted(parts, q_len, kv_len):
    """How often each key of each query is in a part."""
    seen = torch.zeros(q_len, kv_len, dtype=torch.long)
    for part in parts:
        shape = torch.ones(part.q_len, part.kv_len, dtype=torch.bool)
        if part.shape != "full":
            shape = {"causal": shape.tril, "reversed": shape.triu, "slanted": part.visible}[part.shape]()
        for i in range(part.problems):
            query, key = part.query + i * part.query_step, part.key + i * part.key_step
            span = part.kv_len * part.key_stride
            seen[query : query + part.q_len, key : key + span : part.key_stride] += shape
    return seen


@pytest.mark.parametrize("for_cpu", [True, False])
@given(runs=runs, first=st.integers(0, 9), width=st.integers(-9, 40))
def test_parts_hold_each_key_of_each_query_once(for_cpu, runs, first, width):
    start, end = bounds(runs, first, width)
    key = torch.arange(int(torch.maximum(start, end).max()) + 1)
    expected = (key >= start[:, None]) & (key < end[:, None])
    parts = parts_of(start, end, for_cpu)
    assert torch.equal(counted(parts, len(start), len(key)), expected.long())


@pytest.mark.parametrize("for_cpu", [True, False])
@given(runs=runs, first=st.integers(0, 9), width=st.integers(1, 40), batch=st.sampled_from((1, 2)))
def test_adding_up_parts_is_attention_with_a_mask(for_cpu, runs, first, width, batch):
    start, end = bounds(runs, first, width)
    kv_len = int(torch.maximum(start, end).max()) + 1
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(batch, 4, len(start), 6, generator=generator)
    key, value = (torch.randn(batch, 2, kv_len, 6, generator=generator) for _ in range(2))
    total = Sum(query)
    for part in parts_of(start, end, for_cpu):
        mask = additive_mask(part.visible(), query) if part.shape == "slanted" else None
        total.add(attend_part(part, query, key, value, Scoring(0.4), mask), part, slice(None))
    index = torch.arange(kv_len)
    visible = (index >= start[:, None]) & (index < end[:, None])
    scores = (query @ key.repeat_interleave(2, 1).mT * 0.4).masked_fill(~visible, -torch.inf)
    expected = (scores.softmax(-1) @ value.repeat_interleave(2, 1)).nan_to_num(0)
    torch.testing.assert_close(total.output(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("for_cpu", [True, False])
@pytest.mark.parametrize(
    ("name", "most"), [("rerope", 9), ("lm_infinite", 7), ("streaming_llm", 9), ("dual_chunk", 14), ("dynamic_ntk", 2)]
)
def test_parts_do_not_grow_in_number_with_the_queries(for_cpu, name, most):
    options = {} if name == "streaming_llm" else {"train_length": 2048} if name != "lm_infinite" else {"n_local": 2048}
    method = make_method(name, **options).bind(type("Config", (), {"max_position_embeddings": 2048}))
    bands = method.bands(torch.arange(8192, 16384), Extent(16384, 16384))
    assert sum(len(parts_of(band.start, band.end, for_cpu)) for band in bands) <= most
