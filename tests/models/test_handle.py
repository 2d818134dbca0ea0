"""A handle after it was removed, and what copies of an attached model are."""

import copy
import io
import pickle

import pytest
import torch
import transformers
from helpers import random_ids
from zoo import SCALING, tiny

import mesa_lm
from mesa_lm.errors import ModelError

LONG = random_ids(100)[None]
METHODS = sorted(mesa_lm.available_methods())


@pytest.mark.parametrize("method", METHODS)
def test_a_removed_handle_is_no_context(llama, method):
    handle = mesa_lm.extrapolate(llama, method)
    handle.remove()
    with pytest.raises(ModelError, match=f"handle's method '{method}' was removed from the model; call extrapolate"):
        with handle:
            pass
    handle.attach()
    with handle:
        llama(LONG)
    assert not handle.is_attached


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "a part": lambda model: copy.deepcopy(model.base_model),
    "pickle": pickle.dumps,
    "torch.save": lambda model: torch.save(model, io.BytesIO()),
}


PAIRS = [
    (variant, method)
    for variant in ("llama", "qwen2-window", "gptj", "mpt")
    for method in METHODS
    if variant != "mpt" or method not in SCALING
]


@pytest.mark.parametrize(("variant", "method"), PAIRS)
def test_an_attached_model_is_not_copied(variant, method):
    """Also where hooks, tables or frequencies of its parts were exchanged."""
    model = tiny(variant)
    with mesa_lm.extrapolate(model, method):
        for name, copied in COPIES.items():
            if name != "a part" or method in ("ntk", "linear", "yarn"):
                with pytest.raises(ModelError, match="attached cannot be copied or pickled; remove the method first"):
                    copied(model)
    for copied in COPIES.values():
        copied(model)


def test_a_copy_of_a_detached_model_is_its_own(llama):
    mesa_lm.extrapolate(llama, "mesa").remove()
    other = copy.deepcopy(llama)
    with torch.no_grad(), mesa_lm.extrapolate(llama, "mesa"):
        other.model.norm.weight.zero_()
        with mesa_lm.extrapolate(other, "rerope"):
            assert not other(LONG).logits.any()
        assert llama(LONG).logits.any()


@pytest.mark.parametrize("method", METHODS)
def test_an_attached_model_is_saved_as_it_is(llama, method, tmp_path):
    with torch.no_grad():
        expected = llama(LONG).logits
        with mesa_lm.extrapolate(llama, method):
            llama(LONG)
            llama.save_pretrained(tmp_path)
            weights = copy.deepcopy(llama.state_dict())
        saved = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert torch.equal(saved(LONG).logits, expected)
        assert all(torch.equal(weights[name], tensor) for name, tensor in saved.state_dict().items())
