"""What a future transformers may do differently: found out by every pass, or by a trial, never a wrong number."""

import pytest
import torch
import transformers
from helpers import random_ids
from tiny_models import tiny_model
from zoo import UNSCALED, VARIANTS, tiny

import mesa_lm
from mesa_lm.errors import ModelError
from mesa_lm.models import tested_versions

IDS = random_ids(100)[None]


def bound_early(model, monkeypatch):
    """Each layer has its attention function from the start, whatever the config says later."""
    for layer in model.model.layers:
        own = type(layer.self_attn).forward

        def forward(*args, module=layer.self_attn, own=own, **kwargs):
            with monkeypatch.context() as patch:
                patch.setattr(module.config, "_attn_implementation", "sdpa")
                return own(module, *args, **kwargs)

        layer.self_attn.forward = forward
    return r"the attention of layers \[0, 1\] did not run exactly once"


def bound_early_in_one_layer(model, monkeypatch):
    bound_early(model, monkeypatch)
    del model.model.layers[0].self_attn.forward
    return r"the attention of layers \[1\] did not run exactly once"


def computed_twice(model, monkeypatch):
    attention = model.model.layers[1].self_attn
    own = attention.forward
    attention.forward = lambda *args, **kwargs: (own(*args, **kwargs), own(*args, **kwargs))[0]
    return r"the attention of layers \[1\] did not run exactly once"


def skipped(model, monkeypatch):
    model.model.layers = model.model.layers[:1]
    return r"the attention of layers \[1\] did not run exactly once"


@pytest.mark.parametrize("change", [bound_early, bound_early_in_one_layer, computed_twice, skipped])
@pytest.mark.parametrize("method", ["mesa", "rerope"])
def test_a_layer_that_attends_elsewhere_ends_the_pass(change, method, monkeypatch):
    model = tiny_model()
    with torch.no_grad(), mesa_lm.extrapolate(model, method):
        message = change(model, monkeypatch)
        with pytest.raises(ModelError, match=message):
            model(IDS)
        assert model.config._attn_implementation == "sdpa"


@pytest.fixture
def untested(monkeypatch):
    """A transformers that this release was not tested with."""
    monkeypatch.setattr(transformers, "__version__", "9.1.0.dev0")
    assert not tested_versions.is_tested()


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_under_other_versions_every_family_passes_the_trial(name, untested):
    model = tiny(name)
    model.train()
    before = [module.training for module in model.modules()]
    mesa_lm.extrapolate(model, "mesa").remove()
    assert [module.training for module in model.modules()] == before


def test_under_other_versions_a_model_that_rotates_by_itself_is_found_out(untested, monkeypatch):
    """The rotary module is there, but what the layers use is computed elsewhere: keys would be rotated twice."""
    model = tiny_model()
    own = type(model.model.rotary_emb).forward
    rotary = property(lambda self: lambda *args, **kwargs: own(self._modules["rotary_emb"], *args, **kwargs))
    monkeypatch.setattr(type(model.model), "rotary_emb", rotary, raising=False)
    with pytest.raises(
        ModelError, match=r"transformers 9.1.0.dev0 does not compute what model type 'llama' stands for"
    ):
        mesa_lm.extrapolate(model, "mesa")
    assert "forward" not in model.__dict__


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - set(UNSCALED)))
@pytest.mark.parametrize("method", ["ntk", "linear", "yarn"])
def test_under_other_versions_frequencies_are_taken_in_every_family(name, method, untested):
    model = tiny(name)
    with torch.no_grad():
        with mesa_lm.extrapolate(model, method, factor=3.0):
            found = model(IDS).logits
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transformers, "__version__", f"{tested_versions.NEWEST_TESTED}.0")
            with mesa_lm.extrapolate(model, method, factor=3.0):
                assert torch.equal(model(IDS).logits, found)
    mesa_lm.extrapolate(model, "linear", factor=1.0).remove()  # which changes nothing


def test_under_other_versions_frequencies_that_are_not_taken_are_found_out(untested, monkeypatch):
    model = tiny_model()
    own = type(model.model.rotary_emb).forward
    rotary = property(lambda self: lambda *args, **kwargs: own(self._modules["rotary_emb"], *args, **kwargs))
    monkeypatch.setattr(type(model.model), "rotary_emb", rotary, raising=False)
    with pytest.raises(ModelError, match="'llama' does not take the frequencies of its rotary module"):
        mesa_lm.extrapolate(model, "ntk")
    assert "forward" not in model.__dict__ and "forward" not in model.model._modules["rotary_emb"].__dict__


def test_tested_versions_are_tried_out_by_nobody(monkeypatch):
    monkeypatch.setattr("mesa_lm.models.attach.try_out", lambda *args: 1 / 0)
    for version in (f"{tested_versions.OLDEST_TESTED}.0", f"{tested_versions.NEWEST_TESTED}.7"):
        monkeypatch.setattr(transformers, "__version__", version)
        mesa_lm.extrapolate(tiny_model(), "mesa").remove()
