"""Methods that see sinks and a window keep these alone, with the outputs of a cache that keeps everything."""

import oracles
import pytest
import torch
from helpers import decode, random_ids, together_and_alone
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import CASES, Setting
from tiny_models import tiny_model
from zoo import tiny

import mesa_lm
from mesa_lm.attention.cache_layer import woven_layer
from mesa_lm.errors import UsageError
from mesa_lm.methods.base import Method

MODEL = Setting(T=41, head_dim=6, base=10000.0)
TOLERANCE = 3e-4  # as for every method against the oracle
DRAWN = st.sampled_from(("streaming_llm", "lm_infinite")).flatmap(
    lambda name: st.tuples(st.just(name), st.fixed_dictionaries(CASES[name].drawn))
)
SHORT = {"streaming_llm": {"start_size": 3, "recent_size": 8}, "lm_infinite": {"n_global": 3, "n_local": 9}}
KEPT = 3 + 8


@pytest.fixture(autouse=True)
def few_spare_tokens(monkeypatch):
    """Drop at once, not after hundreds of tokens."""
    monkeypatch.setattr("mesa_lm.attention.cache.SPARE_TOKENS", 2)


def rows_of(cache):
    return woven_layer(cache).woven.rows


@settings(max_examples=60)
@given(
    drawn=DRAWN,
    prompt=st.integers(1, 130),
    pieces=st.lists(st.integers(1, 30), max_size=3),
    new=st.integers(0, 12),
    pass_tokens=st.sampled_from((7, 29, 8192)),
)
def test_passes_pieces_and_decoding_equal_the_oracle(drawn, prompt, pieces, new, pass_tokens):
    name, options = drawn
    model, total = tiny_model(kv_heads=2), prompt + sum(pieces) + new
    if name == "lm_infinite":  # else first keys are as far as a piece's input is long
        options = {**options, "distance_limit": min(options.get("distance_limit") or 1, options.get("n_local") or 1)}
    ids = random_ids(total)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), mesa_lm.extrapolate(model, name, **options) as handle:
        patch.setattr("mesa_lm.attention.pass_plan.PASS_TOKENS", pass_tokens)
        logits, cache = [], None
        for piece in ids.split([prompt, *pieces, *[1] * new]):
            output = model(piece[None], past_key_values=cache, use_cache=True)
            logits.append(output.logits[0])
            cache = output.past_key_values
    expected = oracles.dense_logits(model, ids, CASES[name].pairs(handle.method, total, total, MODEL))
    torch.testing.assert_close(torch.cat(logits).double(), expected, atol=TOLERANCE, rtol=0)


@settings(max_examples=40)
@given(
    drawn=DRAWN,
    lengths=st.lists(st.integers(1, 90), min_size=2, max_size=4),
    side=st.sampled_from(("left", "right")),
    new=st.integers(0, 9),
)
def test_rows_drop_their_own_tokens(drawn, lengths, side, new):
    name, options = drawn
    rows = [random_ids(length, seed) for seed, length in enumerate(lengths)]
    model = tiny_model()
    with torch.no_grad(), mesa_lm.extrapolate(model, name, **options):
        for batched, alone in together_and_alone(model, rows, side, random_ids(new, 99)):
            torch.testing.assert_close(batched, alone, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", SHORT)
def test_what_is_stored_does_not_grow_with_the_input(name):
    model, ids = tiny_model(), random_ids(400)
    with torch.no_grad(), mesa_lm.extrapolate(model, name, **SHORT[name]):
        for prompt in (60, 390):
            cache = model(ids[None, :prompt], use_cache=True, logits_to_keep=1).past_key_values
            (row,) = rows_of(cache)
            assert row.length - row.dropped == KEPT + 2
            for token in ids[prompt : prompt + 10]:
                model(token.view(1, 1), past_key_values=cache)
                assert KEPT + 2 <= row.length - row.dropped <= KEPT + 2 + 2
            woven = woven_layer(cache).woven
            buffers = [*woven.keys.values(), *woven.values.values()]
            assert len(buffers) == 2 * model.config.num_hidden_layers
            assert all(buffer.shape[2] <= KEPT + 2 + 64 for buffer in buffers)  # and 64 to grow into


def test_the_same_keys_are_attended_to_as_if_all_were_kept(monkeypatch):
    """Also in layers that keep a window of their own, wider than the method's."""
    model, ids = tiny("gemma2"), random_ids(150)
    monkeypatch.setattr("mesa_lm.attention.pass_plan.PASS_TOKENS", 37)
    with torch.no_grad(), mesa_lm.extrapolate(model, "streaming_llm", start_size=2, recent_size=3) as handle:
        windows = [group.window for group in handle.layers.groups if group.window is not None]
        assert windows and max(windows) > 4
        found = decode(model, ids, 120)
        monkeypatch.setattr(type(handle.method), "kept", Method.kept)
        torch.testing.assert_close(found, decode(model, ids, 120), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("count", [1, 2, 30])
def test_what_one_call_appended_can_be_taken_back(name, count):
    """Continuations of a shared context, and the candidates of assisted generation, are appended in one call."""
    model, ids, others = tiny_model(), random_ids(100), random_ids(30, seed=1)
    with torch.no_grad(), mesa_lm.extrapolate(model, name, **SHORT[name]):
        expected = decode(model, ids, 60)[60:]
        cache = model(ids[None, :60], use_cache=True).past_key_values
        for _ in range(3):
            model(others[None, :count], past_key_values=cache)
            cache.crop(-count)
        found = [model(token.view(1, 1), past_key_values=cache).logits[0] for token in ids[60:]]
    torch.testing.assert_close(torch.cat(found), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", SHORT)
def test_cropping_further_is_refused_by_name(name):
    model, ids = tiny_model(), random_ids(100)
    with torch.no_grad(), mesa_lm.extrapolate(model, name, **SHORT[name]):
        cache = model(ids[None, :60], use_cache=True).past_key_values
        expected = decode(model, ids[:62], 58)[58:]
        with pytest.raises(UsageError, match="can be cropped by 2 tokens, found 3"):
            cache.crop(-3)
        cache.crop(-2)
        found = [model(token.view(1, 1), past_key_values=cache).logits[0] for token in ids[58:62]]
    torch.testing.assert_close(torch.cat(found), expected, atol=TOLERANCE, rtol=0)


def test_a_cache_that_a_broken_call_changed_is_refused():
    model, ids = tiny_model(), random_ids(100)
    with torch.no_grad(), mesa_lm.extrapolate(model, "streaming_llm", **SHORT["streaming_llm"]):
        cache = model(ids[None, :60], use_cache=True).past_key_values
        model(ids[None, 60:80], past_key_values=cache)  # can be taken back until the next call

        def interrupt(*_):
            raise KeyboardInterrupt

        hook = model.model.layers[1].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(ids[None, 80:81], past_key_values=cache)
        hook.remove()
        with pytest.raises(UsageError, match="interrupted while it changed this cache"):
            model(ids[None, 80:81], past_key_values=cache)


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 4}, {}], ids=str)
def test_generation_is_that_of_a_cache_that_keeps_everything(name, options, monkeypatch):
    model, ids = tiny_model(), random_ids(20).repeat(4)[None]
    monkeypatch.setattr("mesa_lm.attention.cache.SPARE_TOKENS", 4)  # as many as there are candidates
    chosen = {"max_new_tokens": 25, "min_new_tokens": 25, "pad_token_id": 0, "do_sample": False, **options}
    with mesa_lm.extrapolate(model, name, **SHORT[name]) as handle:
        found = model.generate(ids, **chosen)
        monkeypatch.setattr(type(handle.method), "kept", Method.kept)
        assert torch.equal(found, model.generate(ids, **chosen))
