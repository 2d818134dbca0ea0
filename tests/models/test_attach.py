"""Attaching and detaching, and what is refused."""

import functools

import pytest
import torch
import transformers
from family_oracle import family_logits
from family_pairs import pairs_of
from helpers import decode, random_ids
from packed_model import SHAPES, load_packed
from tiny_models import tiny_model
from zoo import T, tiny

import mesa_lm
from mesa_lm.attention.cache_layer import woven_layer
from mesa_lm.errors import MethodError, ModelError, UsageError

LONG = torch.arange(100)[None] % 57 + 1


def test_a_handle_attaches_and_detaches(llama):
    before = llama(LONG).logits
    handle = mesa_lm.extrapolate(llama, mesa_lm.Mesa(chunk_width=30))
    assert handle.method.train_length == 41
    assert not torch.allclose(llama(LONG).logits, before)
    handle.remove()
    handle.remove()
    assert torch.equal(llama(LONG).logits, before)
    assert "forward" not in llama.__dict__ and "_mesa_handle" not in llama.__dict__


def test_an_error_inside_the_block_detaches(llama):
    with pytest.raises(RuntimeError, match="boom"), mesa_lm.extrapolate(llama, "mesa"):
        raise RuntimeError("boom")
    assert "forward" not in llama.__dict__


def test_an_error_inside_a_pass_restores_attention_and_rotary(llama):
    implementation = llama.config._attn_implementation
    with mesa_lm.extrapolate(llama, "mesa"):
        expected = llama(LONG).logits
        hook = llama.model.layers[1].register_forward_pre_hook(lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            llama(LONG)
        hook.remove()
        assert llama.config._attn_implementation == implementation
        assert "forward" not in llama.model.rotary_emb.__dict__
        assert torch.equal(llama(LONG).logits, expected)


def test_a_forward_replaced_by_others_survives(llama):
    calls = []
    own = type(llama).forward

    def forward(*args, **kwargs):
        calls.append(1)
        return own(llama, *args, **kwargs)

    llama.forward = forward
    with mesa_lm.extrapolate(llama, "mesa"):
        llama(LONG)
    assert llama.forward is forward and calls


@pytest.mark.parametrize("method", ["mesa", "ntk", "origin"])
def test_a_forward_that_others_put_around_ours_survives(llama, method):
    """As accelerate's mixed precision does: after detaching it is around the model's own."""
    expected = llama(LONG).logits

    def doubled(*args, own=None, **kwargs):
        output = own(*args, **kwargs)
        output.logits = 2 * output.logits
        return output

    with mesa_lm.extrapolate(llama, method):
        inside = llama(LONG).logits
        ours = llama.forward
        llama.forward = functools.partial(doubled, own=ours)
        assert torch.equal(llama(LONG).logits, 2 * inside)
    assert torch.equal(llama(LONG).logits, 2 * expected)
    with mesa_lm.extrapolate(llama, method):
        assert torch.equal(llama(LONG).logits, 2 * inside)
    del llama.forward
    assert torch.equal(llama(LONG).logits, expected)


def test_nesting_is_refused(llama):
    with mesa_lm.extrapolate(llama, "mesa"):
        with pytest.raises(ModelError, match="'mesa' is attached"):
            mesa_lm.extrapolate(llama, "origin")
    with mesa_lm.extrapolate(llama, "origin"):
        with pytest.raises(ModelError, match="'origin' is attached"):
            mesa_lm.extrapolate(llama, "mesa")


def test_origin_is_the_untouched_model(llama):
    before = llama(LONG).logits
    with mesa_lm.extrapolate(llama, "origin"):
        assert torch.equal(llama(LONG).logits, before)


def test_a_handle_attaches_again_what_it_has_removed(llama):
    handle = mesa_lm.extrapolate(llama, "mesa")
    expected = llama(LONG).logits
    handle.remove()
    assert not handle.is_attached
    with mesa_lm.extrapolate(llama, "rerope"), pytest.raises(ModelError, match="'rerope' is attached"):
        handle.attach()
    handle.attach()
    assert handle.is_attached and torch.equal(llama(LONG).logits, expected)
    handle.remove()


def gpt2(monkeypatch, folder):
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=59)), "mesa"


def parameters_that_do_not_fit(monkeypatch, folder):
    return tiny("llama"), mesa_lm.Mesa(last_chunk=10_000)


def refused_rope_type(monkeypatch, folder):
    model = tiny("llama")
    model.config.rope_parameters["rope_type"] = "proportional"
    return model, "mesa"


def another_class_of_attention(monkeypatch, folder):
    model = tiny("llama")
    model.model.layers[1].self_attn = torch.nn.Identity()
    return model, "mesa"


def remote_code_of_another_kind(monkeypatch, folder):
    return load_packed(folder, **SHAPES["rotary"], sharper=1.2), "mesa"


def remote_code_that_fails(monkeypatch, folder):
    model = load_packed(folder, **SHAPES["rotary"])
    model.model.layers[1].norm.forward = lambda states: 1 / 0
    return model, "mesa"


def frequencies_that_fail(monkeypatch, folder):
    model = tiny("llama")
    monkeypatch.setattr(type(model.model.rotary_emb), "__init__", lambda *args: 1 / 0)
    return model, "ntk"


def half_changed_frequencies(monkeypatch, folder):
    """The rotary module and the first layer with a window are changed when the second one fails."""
    model = tiny("qwen2-window")
    monkeypatch.setattr(model.model.layers[2].self_attn, "register_forward_pre_hook", lambda *args, **kwargs: 1 / 0)
    return model, "ntk"


def half_changed_tables(monkeypatch, folder):
    """Tables were made longer, and the first layer has those of other frequencies, when the second one fails."""
    model = tiny("gptj")
    replaced = []

    def setattr_until_the_fourth(module, name, value):
        replaced.append(name)
        object.__setattr__(module, name, 1 / 0 if len(replaced) == 4 else value)

    kind = type(model.transformer.h[1].attn)
    monkeypatch.setattr(kind, "__setattr__", setattr_until_the_fourth)
    return model, "ntk"


def state_of(model):
    """What attaching could change, of every module: attributes, hooks, and which attention runs."""
    kept = {
        name: (set(module.__dict__), len(module._forward_pre_hooks), len(module._forward_hooks))
        for name, module in model.named_modules()
    }
    return kept, model.config._attn_implementation


@pytest.mark.parametrize(
    "case",
    [
        gpt2,
        parameters_that_do_not_fit,
        refused_rope_type,
        another_class_of_attention,
        remote_code_of_another_kind,
        remote_code_that_fails,
        frequencies_that_fail,
        half_changed_frequencies,
        half_changed_tables,
    ],
    ids=lambda case: case.__name__,
)
def test_a_failed_attempt_leaves_the_model_as_it_was(case, monkeypatch, tmp_path):
    model, method = case(monkeypatch, tmp_path)
    before = state_of(model)
    with pytest.raises((mesa_lm.MesaError, ZeroDivisionError)):
        mesa_lm.extrapolate(model, method)
    assert state_of(model) == before
    mesa_lm.extrapolate(model, "origin").remove()
    assert state_of(model) == before


def test_passes_take_over_a_cache_that_has_gradients_without_them(llama):
    with mesa_lm.extrapolate(llama, "mesa"):
        output = llama(LONG[:, :41], use_cache=True)
        assert output.past_key_values.layers[0].keys.requires_grad
        output = llama(LONG[:, 41:43], past_key_values=output.past_key_values, use_cache=True)
    assert not output.logits.requires_grad
    assert not woven_layer(output.past_key_values).woven.keys[0].requires_grad


def test_unsupported_models_are_named():
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11))
    with pytest.raises(ModelError, match=r"'gpt2' is not supported; supported are llama, mistral"):
        mesa_lm.extrapolate(gpt2, "mesa")
    with pytest.raises(ModelError, match="needs a transformers model, found Linear"):
        mesa_lm.extrapolate(torch.nn.Linear(2, 2), "mesa")
    model = tiny_model()
    model.config.rope_parameters["rope_type"] = "proportional"
    with pytest.raises(ModelError, match="rope_type 'proportional' is not supported; supported are default, linear"):
        mesa_lm.extrapolate(model, "mesa")


def test_static_rope_scaling_keeps_its_attention_factor():
    """Under YaRN cos and sin carry a factor; a dense prompt through our passes equals the model itself."""
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 41}
    model = tiny_model(rope_parameters=rope, train_length=164)
    ids = LONG[:, :40]
    expected = model(ids).logits
    short_and_long = torch.zeros(2, 100, dtype=torch.long)
    short_and_long[0], short_and_long[1, :40] = LONG, ids
    mask = torch.ones_like(short_and_long)
    mask[1, 40:] = 0
    with torch.no_grad(), mesa_lm.extrapolate(model, "mesa") as handle:
        assert handle.method.train_length == 41
        logits = model(short_and_long, attention_mask=mask).logits
    torch.testing.assert_close(logits[1:, :40], expected, atol=1e-4, rtol=0)


def test_far_keys_carry_the_attention_factor_once():
    """Decoding past T moves keys of the untouched model's cache, which have YaRN's factor already."""
    model, ids = tiny("llama-yarn"), random_ids(T + 11)
    with torch.no_grad(), mesa_lm.extrapolate(model, "mesa") as handle:
        logits = decode(model, ids, T - 3)
    pairs, factor = pairs_of("llama-yarn", "mesa", handle.method, T - 3, T + 11)
    expected = family_logits(model, ids, pairs, T, factor)
    torch.testing.assert_close(logits.double(), expected, atol=2e-4, rtol=0)


def test_sliding_windows_are_respected():
    model = tiny_model("mistral", sliding_window=90)
    with torch.no_grad(), mesa_lm.extrapolate(model, "mesa"):
        assert model(LONG[:, :90]).logits.shape == (1, 90, 59)
        with pytest.raises(ModelError, match="attention windows of 90 tokens.*found 100"):
            model(LONG)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention_mask": torch.ones(1, 1, 100, 100)}, "attention_mask must be 2-D"),
        ({"attention_mask": torch.ones(1, 99)}, r"\(1, 100\).*found \(1, 99\)"),
        ({"position_ids": torch.arange(100)[None] // 2}, "position_ids must count"),
        ({"output_attentions": True}, "output_attentions is not available"),
        ({"output_hidden_states": True}, "output_hidden_states is not available"),
        ({"logits_to_keep": torch.zeros(1, 100, dtype=torch.bool)}, "logits_to_keep must be"),
        ({"inputs_embeds": torch.zeros(1, 100, 24)}, "exactly one of input_ids and inputs_embeds"),
        ({"past_key_values": ((1, 2),)}, "must be a transformers Cache, found tuple"),
    ],
)
def test_calls_that_cannot_be_followed_are_refused(llama, arguments, message):
    with mesa_lm.extrapolate(llama, "mesa"):
        with pytest.raises(ModelError, match=message):
            llama(LONG, **arguments)


def test_no_token_at_all_is_within_the_training_length(llama):
    hidden = {"attention_mask": torch.zeros(1, 100)}
    expected = llama(LONG, **hidden).logits
    with mesa_lm.extrapolate(llama, "mesa"):
        assert torch.equal(llama(LONG, **hidden).logits, expected)


def test_the_cache_is_refused_where_it_would_be_wrong(llama):
    with mesa_lm.extrapolate(llama, "mesa"):
        cache = llama(LONG, use_cache=True).past_key_values
        with pytest.raises(UsageError, match="cannot be cropped"):
            cache.crop(-1)
        with pytest.raises(ModelError, match="the cache holds 1 rows, the input has 2"):
            llama(LONG[:, :1].expand(2, 1), past_key_values=cache)
    with pytest.raises(UsageError, match="filled under method 'mesa' and is of use to it alone"):
        llama(LONG[:, :1], past_key_values=cache)


def test_parameters_come_inside_the_method(llama):
    with pytest.raises(ModelError, match="first_chunk must be given inside the method Mesa"):
        mesa_lm.extrapolate(llama, mesa_lm.Mesa(), first_chunk=3)
    with mesa_lm.extrapolate(llama, mesa_lm.Mesa, first_chunk=3) as handle:
        assert handle.method.first_chunk == 3
    with pytest.raises(MethodError, match="unknown method 'meza'; did you mean 'mesa'"):
        mesa_lm.extrapolate(llama, "meza")


@pytest.mark.parametrize("name", ["LlamaModel", "LlamaForSequenceClassification", "LlamaForTokenClassification"])
@pytest.mark.parametrize("method", ["mesa", "rerope", "yarn"])
def test_models_without_a_language_model_head_are_refused_by_name(llama, name, method):
    other = getattr(transformers, name)(llama.config)
    with pytest.raises(ModelError, match=f"{name} has no language model head; load it with AutoModelForCausalLM"):
        mesa_lm.extrapolate(other, method)
    assert "forward" not in other.__dict__


@pytest.mark.parametrize("method", ["mesa", "rerope", "dynamic_ntk"])
def test_training_beyond_what_a_method_leaves_alone_says_so(llama, method):
    embedded = llama.get_input_embeddings()(LONG).detach().requires_grad_()
    with mesa_lm.extrapolate(llama, method):
        with pytest.raises(ModelError, match=f"'{method}' is training-free.*and inputs_embeds asks for them"):
            llama(inputs_embeds=embedded)
        llama.train()
        with pytest.raises(ModelError, match=f"'{method}' is training-free.*the model is in training mode"):
            llama(LONG, labels=LONG)
        with torch.no_grad():
            llama(LONG, labels=LONG)
        llama(LONG[:, :9], labels=LONG[:, :9]).loss.backward()
    assert llama.model.layers[0].self_attn.q_proj.weight.grad is not None


def test_training_with_other_frequencies_is_training(llama):
    llama.train()
    with mesa_lm.extrapolate(llama, "linear"):
        llama(LONG, labels=LONG).loss.backward()
    assert llama.model.layers[0].self_attn.q_proj.weight.grad is not None
