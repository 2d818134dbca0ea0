"""Another method on the weights that are loaded: a transaction."""

import pytest
import torch
import transformers
from packed_model import SHAPES, load_packed
from word_model import requests, text

from mesa_lm.errors import MesaError, ModelError
from mesa_lm.harness.model import MesaHFLM
from mesa_lm.methods.registry import make_method
from mesa_lm.models.attach import extrapolate


def test_another_method_runs_on_the_weights_that_are_loaded(model_path):
    switched = MesaHFLM(pretrained=model_path, method="origin", batch_size=1)
    weights = switched.model.state_dict()["lm_head.weight"].data_ptr()
    asked = requests("loglikelihood", (text(90, 1), text(4, 2)))
    for method, options in (("mesa", {}), ("rerope", {"window": 7}), ("origin", {}), ("stair", {})):
        switched.switch(make_method(method, **options))
        fresh = MesaHFLM(pretrained=model_path, method=method, batch_size=1, **options)
        assert switched.loglikelihood(asked) == fresh.loglikelihood(asked)
        assert switched.get_model_info()["mesa_lm"] == fresh.get_model_info()["mesa_lm"]
    assert switched.model.state_dict()["lm_head.weight"].data_ptr() == weights


def given(model, model_path, method):
    """A model that is loaded already, with the tokenizer of the tiny one."""
    return MesaHFLM(model, tokenizer=transformers.AutoTokenizer.from_pretrained(model_path), method=method)


def another_family(model_path, monkeypatch, folder):
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=56, n_positions=1000)
    return given(transformers.GPT2LMHeadModel(config).eval(), model_path, "origin"), make_method("mesa")


def a_quantiser_s_own_class(model_path, monkeypatch, folder):
    class Quantised(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.config, self.device = model, model.config, model.device
            self.dtype, self.name_or_path, self.tie_weights = model.dtype, "", lambda: None

        def forward(self, input_ids):
            return self.model(input_ids)

    inner = transformers.AutoModelForCausalLM.from_pretrained(model_path)
    return given(Quantised(inner).eval(), model_path, "origin"), make_method("mesa")


def parameters_that_do_not_fit(model_path, monkeypatch, folder):
    return MesaHFLM(pretrained=model_path, method="rerope", window=7), make_method("mesa", last_chunk=10_000)


def a_refused_rope_type(model_path, monkeypatch, folder):
    lm = MesaHFLM(pretrained=model_path, method="mesa")
    monkeypatch.setitem(lm.model.config.rope_parameters, "rope_type", "proportional")
    return lm, make_method("rerope")


def attention_that_is_unknown(model_path, monkeypatch, folder):
    lm = MesaHFLM(pretrained=model_path, method="ntk")
    attention = lm.model.model.layers[1].self_attn
    attention.__class__ = type("OtherAttention", (type(attention),), {})
    return lm, make_method("mesa")


def remote_code_that_computes_something_else(model_path, monkeypatch, folder):
    return given(load_packed(folder, **SHAPES["rotary"], sharper=1.2), model_path, "origin"), make_method("mesa")


def remote_code_that_changed(model_path, monkeypatch, folder):
    lm = given(load_packed(folder, **SHAPES["rotary"]), model_path, "mesa")
    lm.model.model.layers[0].self_attn.sharper = 1.2
    return lm, make_method("rerope")


def frequencies_that_fail(model_path, monkeypatch, folder):
    lm = MesaHFLM(pretrained=model_path, method="mesa")
    monkeypatch.setattr(type(lm.model.model.rotary_emb), "__init__", lambda *args: 1 / 0)
    return lm, make_method("ntk")


def layers_that_fail_to_change(model_path, monkeypatch, folder):
    lm = MesaHFLM(pretrained=model_path, method="mesa")
    monkeypatch.setattr("mesa_lm.models.rotary_modules.replace_method", lambda *args: 1 / 0)
    return lm, make_method("ntk")


def frequencies_that_were_scaled(model_path, monkeypatch, folder):
    return MesaHFLM(pretrained=model_path, method="ntk"), make_method("mesa", last_chunk=10_000)


@pytest.mark.parametrize(
    "case",
    [
        another_family,
        a_quantiser_s_own_class,
        parameters_that_do_not_fit,
        a_refused_rope_type,
        attention_that_is_unknown,
        remote_code_that_computes_something_else,
        remote_code_that_changed,
        frequencies_that_fail,
        layers_that_fail_to_change,
        frequencies_that_were_scaled,
    ],
    ids=lambda case: case.__name__,
)
def test_where_another_method_cannot_be_attached_the_present_one_stays(case, model_path, monkeypatch, tmp_path):
    lm, other = case(model_path, monkeypatch, tmp_path)
    asked = requests("loglikelihood", (text(190, 1), text(4, 2)), (text(190, 1), text(3, 3)))
    state = lm.method, lm.handle, lm.stock_calls, lm.share_beyond, lm.handle and lm.handle.store
    before = lm.loglikelihood(asked)
    with pytest.raises((MesaError, ZeroDivisionError)):
        lm.switch(other)
    assert (lm.method, lm.handle, lm.stock_calls, lm.share_beyond, lm.handle and lm.handle.store) == state
    assert lm.handle is None or lm.handle.is_attached
    assert lm.loglikelihood(asked) == before


def test_a_method_that_somebody_else_attached_stays(model_path):
    lm = MesaHFLM(pretrained=model_path, method="mesa")
    lm.handle.remove()
    with extrapolate(lm.model, "stair") as others:
        with pytest.raises(ModelError, match="'stair' is attached to this model already"):
            lm.switch(make_method("rerope"))
        assert others.is_attached and lm.method.name == "mesa"
    lm.switch(make_method("rerope"))
    assert lm.handle.is_attached and lm.method.name == "rerope"
