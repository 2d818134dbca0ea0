"""Tables that end at the training length: longer ones have the same values, and more of them."""

import pytest
import torch
from helpers import decode, random_ids
from zoo import T, tiny

import mesa_lm
from mesa_lm.models.position_tables import input_length

LENGTH_OPTION = {"mpt": "max_seq_len", "gptj": "n_positions"}


@pytest.mark.parametrize("variant", LENGTH_OPTION)
def test_origin_runs_beyond_the_table_as_a_model_with_a_longer_one(variant):
    model, longer = tiny(variant), tiny(variant, **{LENGTH_OPTION[variant]: 4 * T})
    ids = random_ids(3 * T)
    with torch.no_grad():
        expected = decode(longer, ids, 3 * T - 5)
        with pytest.raises((RuntimeError, IndexError)):
            model(ids[None])
        with mesa_lm.extrapolate(model, "origin"):
            assert torch.equal(decode(model, ids, 3 * T - 5), expected)
        with pytest.raises((RuntimeError, IndexError)):
            model(ids[None])


@pytest.mark.parametrize("variant", LENGTH_OPTION)
def test_rows_of_a_batch_and_embeddings_find_their_positions(variant):
    model, longer = tiny(variant), tiny(variant, **{LENGTH_OPTION[variant]: 4 * T})
    ids = random_ids(2 * T)[None]
    mask = torch.ones_like(ids)
    mask[:, :5] = 0
    inputs = {"inputs_embeds": model.get_input_embeddings()(ids), "attention_mask": mask}
    with torch.no_grad():
        expected = longer(**inputs).logits
        with mesa_lm.extrapolate(model, "origin"):
            assert torch.equal(model(**inputs).logits, expected)


def test_the_length_of_a_call():
    ids = torch.zeros(2, 7)
    assert input_length((ids,), {}) == input_length((), {"input_ids": ids}) == input_length((None,), {"input_ids": ids})
    assert input_length((), {"inputs_embeds": torch.zeros(2, 7, 3)}) == 7
    assert input_length((), {}) == 0
