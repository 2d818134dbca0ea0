"""Chunks and stairs: the arithmetic, against the oracle's and by properties."""

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from oracles import chunks, stair

import mesa_lm
from mesa_lm.methods.weaves import Placement, Stair


class Config:
    model_type = "llama"

    def __init__(self, length):
        self.max_position_embeddings = length


def test_the_papers_example():
    """N = 4, E = 2, query 9: the formula rounds up; the example beside it, like the released code, rounds down."""
    woven = Placement(last=9, weave=Stair(near=4, width=2))
    assert (9 - woven.position(torch.arange(10))).tolist() == [7, 6, 6, 5, 5, 4, 3, 2, 1, 0]
    released = Placement(last=9, weave=Stair(near=4, width=2, ceil=False))
    assert (9 - released.position(torch.arange(10))).tolist() == [6, 6, 5, 5, 4, 4, 3, 2, 1, 0]


@given(last=st.integers(0, 400), near=st.integers(0, 50), width=st.integers(1, 60))
def test_stair_follows_its_definition(last, near, width):
    positions = Placement(last=last, weave=Stair(near=near, width=width)).position(torch.arange(last + 5))
    for j, position in enumerate(positions.tolist()):
        assert position == (j if j > last else last - stair(last - j, near, width))
    assert bool((positions.diff() >= 0).all())


@given(
    prompt=st.integers(1, 5000),
    length=st.integers(16, 700),
    width=st.none() | st.integers(1, 600),
)
def test_layout_covers_the_prompt(prompt, length, width):
    method = mesa_lm.Mesa().bind(Config(length))
    if width is not None:
        width = min(width, length - method.first_chunk)
        method = mesa_lm.Mesa(chunk_width=width).bind(Config(length))
    layout = method.layout(prompt)
    if prompt <= length:
        assert layout is None
        return
    assert layout.first + layout.width <= length
    last = prompt - layout.last_start
    assert last >= method.last_chunk
    if width is None and layout.narrow:  # what rounding left over would not have fitted the positions
        assert last == method.last_chunk
        return
    expected = chunks(prompt, T=length, F=layout.first, L=method.last_chunk, M_max=method.split_margin, C=width)
    bounds = [0, *(layout.first + i * layout.width for i in range(layout.middle + 1))]
    if layout.narrow:
        bounds.append(layout.last_start)
    assert [start for start, _ in expected] == bounds
    assert width is None or last < method.last_chunk + method.split_margin
    blocks = list(layout.blocks(1000))
    starts = [block.start + i * block.width for block in blocks for i in range(block.chunks)]
    assert [*starts, layout.last_start] == bounds[1:]


@given(prompt=st.integers(2049, 3_000_000), length=st.sampled_from((64, 512, 2048)))
@example(prompt=262_111, length=512)
@example(prompt=1_048_535, length=512)
def test_no_chunk_is_wider_than_its_positions(prompt, length):
    method = mesa_lm.Mesa().bind(Config(length))
    layout = method.layout(prompt)
    assert layout.first + layout.width <= length and layout.narrow < layout.width
    woven = method.next_weave(prompt, prompt - layout.last_start, prompt, None)
    assert prompt - layout.last_start <= woven.near < length


@given(prompt=st.integers(2049, 3_000_000), length=st.sampled_from((64, 512, 2048)))
@example(prompt=125_053, length=512)
@example(prompt=2_100_000, length=2048)
def test_auto_width_keeps_positions_inside_the_training_length(prompt, length):
    method = mesa_lm.Mesa().bind(Config(length))
    last = prompt - method.layout(prompt).last_start
    woven = method.next_weave(prompt, last, prompt, None)
    farthest = prompt - 1 + method.reweave_every - int(woven.position(torch.tensor(0)))
    assert farthest <= length - 1
    if woven.weave.width > 50:
        narrower = Placement(last=woven.last, weave=Stair(near=woven.near, width=woven.weave.width - 1))
        assert prompt - 1 + method.reweave_every - int(narrower.position(torch.tensor(0))) > length - 1


def test_published_constants_from_2048_on():
    for length in (2048, 4096, 131072):
        method = mesa_lm.Mesa().bind(Config(length))
        assert (method.first_chunk, method.last_chunk, method.split_margin) == (100, 512, 200)
        assert (method.extrapolated_position, method.reweave_every, method.extrapolated_width) == (512, 512, "auto")
    assert mesa_lm.Mesa().bind(Config(2048)).next_weave(16384, 600, 16384, None).weave.width == 50
    small = mesa_lm.Mesa().bind(Config(512))
    assert (small.first_chunk, small.last_chunk, small.split_margin) == (25, 128, 51)
    assert (small.extrapolated_position, small.reweave_every) == (204, 128)
