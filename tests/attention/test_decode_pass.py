"""Decoding from a cache that was cropped, appended to or reordered goes on as from one filled at once."""

import pytest
import torch
from helpers import random_ids
from method_cases import CASES
from tiny_models import tiny_model

import mesa_lm
from mesa_lm.attention.band_pass import evenly_apart

SHARED = [name for name, case in CASES.items() if case.shares and name not in ("linear", "ntk", "yarn")]


def decoded(model, cache, tokens):
    """Logits of tokens that are fed one by one."""
    return torch.cat(
        [model(token.view(-1, 1), past_key_values=cache, use_cache=True).logits for token in tokens], dim=1
    )


@pytest.mark.parametrize("name", SHARED)
def test_what_a_crop_took_away_leaves_no_trace(name):
    """The last keys at their true positions are those of the tokens that replaced them, one by one or at once."""
    model, ids, others = tiny_model(), random_ids(70), random_ids(70, seed=1)
    with torch.no_grad(), mesa_lm.extrapolate(model, name, **CASES[name].short):
        expected = model(ids[None]).logits[:, 60:]
        cache = model(ids[None, :60], use_cache=True).past_key_values
        decoded(model, cache, others[60:64])
        cache.crop(-4)
        found = [decoded(model, cache, ids[60:63])]
        decoded(model, cache, others[63:66])
        cache.crop(-3)
        found.append(model(ids[None, 63:66], past_key_values=cache, use_cache=True).logits)
        found.append(decoded(model, cache, ids[66:]))
    torch.testing.assert_close(torch.cat(found, dim=1), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SHARED)
def test_reordered_rows_take_their_recent_keys_along(name):
    model, ids = tiny_model(), torch.stack([random_ids(70), random_ids(70, seed=1)])
    swapped = ids.flip(0)
    with torch.no_grad(), mesa_lm.extrapolate(model, name, **CASES[name].short):
        expected = model(swapped).logits[:, 63:]
        cache = model(ids[:, :60], use_cache=True).past_key_values
        decoded(model, cache, ids[:, 60:63].T)
        cache.reorder_cache(torch.tensor([1, 0]))
        found = decoded(model, cache, swapped[:, 63:].T)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_indices_at_equal_distances_are_a_slice():
    for index, expected in (([], None), ([4], slice(4, 5, 1)), ([3, 5, 7], slice(3, 8, 2)), ([1, 2, 4], None)):
        assert evenly_apart(torch.tensor(index, dtype=torch.long)) == expected
