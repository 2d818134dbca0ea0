"""The cache of the untouched model: it grows in place and changes nothing else."""

import pytest
import torch
from helpers import random_ids
from tiny_models import FAMILIES, tiny_model
from transformers.cache_utils import DynamicCache

import mesa_lm
from mesa_lm.errors import ModelError
from mesa_lm.models.growing_cache import GrowingLayer, let_grow

# No windows, since only layers that hold all tokens grow; and heads of a size that real models have.
UNIFORM = {"head_dim": 8, "sliding_window": None}


@pytest.fixture
def llama():
    return tiny_model(**UNIFORM)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True}], ids=["greedy", "beams", "sampling"])
def test_generation_is_that_of_the_untouched_model_to_the_last_bit(family, options):
    model = tiny_model(family, **UNIFORM)
    ids = torch.stack([random_ids(29), random_ids(29, seed=1)])

    def generate():
        torch.manual_seed(0)
        return model.generate(
            ids, max_new_tokens=83, return_dict_in_generate=True, output_logits=True, eos_token_id=None, **options
        )

    before = generate()
    with mesa_lm.extrapolate(model, "origin"):
        after = generate()
    assert torch.equal(before.sequences, after.sequences)
    assert all(torch.equal(one, other) for one, other in zip(before.logits, after.logits, strict=True))
    assert isinstance(after.past_key_values.layers[1], GrowingLayer)
    assert not isinstance(before.past_key_values.layers[1], GrowingLayer)


def test_decoding_does_not_copy_the_cache(llama):
    with mesa_lm.extrapolate(llama, "origin"), torch.no_grad():
        output = llama(random_ids(997)[None])
        places = set()
        for token in random_ids(61):
            output = llama(token.view(1, 1), past_key_values=output.past_key_values)
            places.add(output.past_key_values.layers[1].keys.data_ptr())
    assert len(places) == 1


def test_the_room_is_at_most_an_eighth(llama):
    with mesa_lm.extrapolate(llama, "origin"), torch.no_grad():
        output = llama(random_ids(997)[None])
        for token in random_ids(211):
            output = llama(token.view(1, 1), past_key_values=output.past_key_values)
    layer = output.past_key_values.layers[0]
    assert layer.keys.shape[2] == 997 + 211
    assert layer.keys.untyped_storage().nbytes() <= (997 + 211) * 9 / 8 * layer.keys[:, :, :1].nbytes


def test_a_cropped_and_a_selected_cache_go_on(llama):
    ids = torch.stack([random_ids(31), random_ids(31, seed=1)])

    def run(cache):
        with torch.no_grad():
            llama(ids[:, :23], past_key_values=cache)
            cache.crop(-4)
            cache.batch_select_indices(torch.tensor([1, 0, 1]))
            return llama(ids[[1, 0, 1], 19:], past_key_values=cache).logits

    growing = DynamicCache(config=llama.config)
    let_grow(growing)
    assert torch.equal(run(growing), run(DynamicCache(config=llama.config)))


def test_gradients_are_those_of_the_untouched_model(llama):
    def gradient():
        llama.zero_grad()
        cache = llama(random_ids(13)[None]).past_key_values
        llama(random_ids(7)[None], past_key_values=cache).logits.sum().backward()
        return llama.model.layers[0].self_attn.k_proj.weight.grad.clone()

    before = gradient()
    with mesa_lm.extrapolate(llama, "origin"):
        assert torch.equal(gradient(), before)


def test_other_caches_are_left_alone(llama):
    filled = DynamicCache(config=llama.config)
    with torch.no_grad():
        llama(random_ids(5)[None], past_key_values=filled)
    let_grow(filled)
    assert not any(isinstance(layer, GrowingLayer) for layer in filled.layers)
    let_grow(None)


def test_keys_of_an_odd_size_are_copied_as_before():
    model = tiny_model(head_dim=6)
    ids = random_ids(29)[None]
    with torch.no_grad():
        before = model(random_ids(1)[None], past_key_values=model(ids).past_key_values).logits
        with mesa_lm.extrapolate(model, "origin"):
            after = model(random_ids(1)[None], past_key_values=model(ids).past_key_values).logits
    assert torch.equal(before, after)


@pytest.mark.parametrize("method", ["origin", "mesa"])
def test_a_mask_of_more_than_the_tokens_without_a_cache_is_refused(llama, method):
    ids, mask = random_ids(7)[None], torch.ones(1, 8)
    with torch.no_grad(), mesa_lm.extrapolate(llama, method):
        for given in ({"input_ids": ids}, {"inputs_embeds": llama.get_input_embeddings()(ids)}):
            with pytest.raises(ModelError, match="attention_mask has 8 columns for 7 tokens without a cache; generate"):
                llama(**given, attention_mask=mask)
        filled = llama(ids[:, :1], use_cache=True).past_key_values
        llama(ids, attention_mask=mask, past_key_values=filled)
