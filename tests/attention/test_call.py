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
    """One pass runs the second row, two run the first, its end before its beginning."""
    wanted = WantedLogits(ForwardCall(input_ids=IDS, logits_to_keep=kept))
    logits = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    for row, columns in ((1, range(7)), (0, range(4, 7)), (0, range(4))):
        place = torch.tensor([list(columns)])
        asked = wanted.of(place)
        own = logits[row, place]
        wanted.put(torch.tensor([row]), place, own if isinstance(asked, int) else own[asked])
    assert torch.equal(wanted.result(), logits[:, -kept:] if isinstance(kept, int) else logits[:, kept])
