"""What a call gives and wants: its rows' own tokens, and logits put together from passes in any order."""

import pytest
import torch

from mesa_lm.attention.call import ForwardCall, WantedLogits
from mesa_lm.errors import ModelError

IDS = torch.arange(14).reshape(2, 7)
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0]])


def test_a_row_s_tokens_are_those_that_its_mask_shows():
    call = ForwardCall(input_ids=IDS, attention_mask=MASK)
    assert [row.tolist() for row in call.cached_columns()] == [[], []]
    assert [row.tolist() for row in call.columns()] == [[2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5]]
    assert (call.past, call.new, call.longest_row()) == (0, 7, 6)
    part = call.part(torch.tensor([1, 0]), torch.tensor([[0, 5], [2, 6]]))
    assert {name: tokens.tolist() for name, tokens in part.items()} == {"input_ids": [[7, 12], [2, 6]]}


def test_embeddings_are_tokens_too():
    embeds = torch.randn(2, 7, 3)
    part = ForwardCall(input_ids=None, inputs_embeds=embeds).part(torch.tensor([1]), torch.tensor([[4, 6]]))
    assert torch.equal(part["inputs_embeds"], embeds[1:, [4, 6]])
    for given in ({"input_ids": None}, {"input_ids": IDS, "inputs_embeds": embeds}):
        with pytest.raises(ModelError, match="give exactly one of input_ids and inputs_embeds"):
            ForwardCall(**given)


def test_a_mask_that_hides_every_new_token_is_refused():
    with pytest.raises(ModelError, match="attention_mask hides every new token"):
        ForwardCall(input_ids=IDS, attention_mask=MASK * 0).columns()


@pytest.mark.parametrize("kept", [0, 1, 3, 1000, torch.tensor([6, 2, 2]), torch.tensor([-1, -7])])
def test_logits_of_passes_are_put_together_in_the_order_asked_for(kept):
    """A pass runs both rows, whose columns differ, the others what is left of each."""
    wanted = WantedLogits(ForwardCall(input_ids=IDS, logits_to_keep=kept))
    logits = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    for rows, columns in (([1, 0], [range(3), range(4, 7)]), ([0], [range(4)]), ([1], [range(3, 7)])):
        rows, columns = torch.tensor(rows), torch.tensor([list(own) for own in columns])
        asked, computed = wanted.of(columns), logits[rows[:, None], columns]
        wanted.put(rows, columns, computed if isinstance(asked, int) else computed[:, asked])
    assert torch.equal(wanted.result(), logits[:, -kept:] if isinstance(kept, int) else logits[:, kept])


def four_dimensional(mask, new, dtype):
    """The causal mask that transformers makes of a padding mask, with room for seven more keys."""
    past = mask.shape[1] - new
    causal = torch.ones(new, mask.shape[1], dtype=torch.bool).tril(past) & mask.bool()[:, None]
    visible = torch.nn.functional.pad(causal, (0, 7))[:, None]
    return (
        visible
        if dtype is None
        else torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
    )


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16])
def test_a_causal_mask_of_four_dimensions_says_what_is_padding(dtype):
    ids, mask = torch.ones(2, 5, dtype=torch.long), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    plain = ForwardCall(input_ids=ids, attention_mask=mask).columns()[1]
    four = ForwardCall(input_ids=ids, attention_mask=four_dimensional(mask, 5, dtype)).columns()[1]
    assert [row.tolist() for row in four] == [row.tolist() for row in plain]


@pytest.mark.parametrize(
    "change",
    [
        lambda mask: mask.clone().index_fill_(3, torch.tensor([2]), True),  # sees ahead
        lambda mask: mask & torch.ones(1, 1, 5, 12).triu(-1).bool(),  # a window
        lambda mask: mask.expand(-1, 3, -1, -1),
        lambda mask: mask[..., :4],
        lambda mask: mask.float(),
    ],
)
def test_other_masks_of_four_dimensions_are_refused(change):
    mask = change(four_dimensional(torch.ones(2, 5), 5, None))
    with pytest.raises(ModelError, match="attention_mask must be 2-D"):
        ForwardCall(input_ids=torch.ones(2, 5, dtype=torch.long), attention_mask=mask).columns()
