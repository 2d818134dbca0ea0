"""Every method over full attention, on whole models: against the dense oracle, in batches, pieces and generation."""

import oracles
import pytest
import torch
from helpers import decode, distinct_ids, pad, random_ids, together_and_alone
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import CASES, Setting
from tiny_models import FAMILIES, tiny_model

import mesa_lm

# float32 passes against a float64 oracle; logits are of the order of 10.
TOLERANCE = 3e-4
MODEL = Setting(T=41, head_dim=6, base=10000.0)
DRAWN = st.sampled_from(sorted(set(CASES) - {"mesa"})).flatmap(
    lambda name: st.tuples(st.just(name), st.fixed_dictionaries(CASES[name].drawn))
)
# Lengths that matter to nothing in particular, and to all: beyond every window.
DEFAULTS = sorted(set(mesa_lm.available_methods()) - {"origin", "mesa"})


@settings(max_examples=120)
@given(drawn=DRAWN, prompt=st.integers(1, 130), new=st.integers(0, 5), kv_heads=st.sampled_from((1, 2, 4)))
def test_prefill_and_decode_equal_the_oracle(drawn, prompt, new, kv_heads):
    name, options = drawn
    model = tiny_model(kv_heads=kv_heads, vocab_size=211)
    ids = distinct_ids(prompt + new)
    with torch.no_grad(), mesa_lm.extrapolate(model, name, **options) as handle:
        logits = decode(model, ids, prompt)
    pairs = CASES[name].pairs(handle.method, prompt, prompt + new, MODEL)
    expected = oracles.dense_logits(model, ids, pairs)
    torch.testing.assert_close(logits.double(), expected, atol=TOLERANCE, rtol=0)


@settings(max_examples=40)
@given(
    drawn=DRAWN,
    lengths=st.lists(st.integers(1, 130), min_size=2, max_size=4),
    side=st.sampled_from(("left", "right")),
    new=st.integers(0, 3),
)
def test_a_row_does_not_depend_on_its_batch(drawn, lengths, side, new):
    name, options = drawn
    model = tiny_model(vocab_size=211)
    rows = [distinct_ids(length, seed) for seed, length in enumerate(lengths)]
    with torch.no_grad(), mesa_lm.extrapolate(model, name, **options):
        for batched, alone in together_and_alone(model, rows, side, random_ids(new, 99)):
            torch.testing.assert_close(batched, alone, atol=TOLERANCE, rtol=0)


@settings(max_examples=40)
@given(
    drawn=DRAWN.filter(lambda drawn: not CASES[drawn[0]].sees_ahead),
    pieces=st.lists(st.integers(1, 40), min_size=2, max_size=4),
)
def test_a_prompt_may_come_in_pieces(drawn, pieces):
    """Where nothing depends on the length of the whole input, pieces give what one pass gives."""
    name, options = drawn
    model = tiny_model()
    ids = random_ids(sum(pieces))[None]
    with torch.no_grad(), mesa_lm.extrapolate(model, name, **options):
        whole = model(ids).logits
        logits, cache = [], None
        for piece in ids.split(pieces, dim=1):
            output = model(piece, past_key_values=cache, use_cache=True)
            logits.append(output.logits)
            cache = output.past_key_values
    torch.testing.assert_close(torch.cat(logits, dim=1), whole, atol=TOLERANCE, rtol=0)


@settings(max_examples=30)
@given(
    turns=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    sinks=st.integers(0, 5),
    recent=st.integers(0, 45),
    answer=st.integers(0, 9),
)
def test_eviction_between_turns_equals_the_oracle(turns, sinks, recent, answer):
    model = tiny_model()
    ids = random_ids(sum(turns))
    sizes = {"start_size": sinks, "recent_size": recent, "max_gen_len": answer}
    logits, cache = [], None
    with torch.no_grad(), mesa_lm.extrapolate(model, "streaming_llm", evict="every_turn", **sizes):
        for piece in ids.split(turns):
            output = model(piece[None], past_key_values=cache, use_cache=True)
            logits.append(output.logits[0])
            cache = output.past_key_values
    pairs = oracles.streaming_turns_pairs(turns, S=sinks, R=recent, M=answer)
    expected = oracles.dense_logits(model, ids, pairs)
    torch.testing.assert_close(torch.cat(logits).double(), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("pass_tokens", [37, 8192])
@pytest.mark.parametrize("name", DEFAULTS)
def test_long_prompts_are_run_in_passes(name, pass_tokens, monkeypatch):
    model = tiny_model()
    ids = random_ids(150)[None]
    with torch.no_grad(), mesa_lm.extrapolate(model, name):
        expected = model(ids).logits
        monkeypatch.setattr("mesa_lm.attention.pass_plan.PASS_TOKENS", pass_tokens)
        torch.testing.assert_close(model(ids).logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", DEFAULTS)
def test_generation_in_a_batch_and_alone(family, name):
    model = tiny_model(family, vocab_size=211)
    rows = [distinct_ids(length, length) for length in (97, 30, 38)]
    options = {"max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None}
    with mesa_lm.extrapolate(model, name):
        batch = pad(rows, "left")
        together = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
        for row, expected in zip(rows, together, strict=True):
            assert torch.equal(model.generate(input_ids=row[None], **options)[0, len(row) :], expected)


@pytest.mark.parametrize("name", DEFAULTS)
def test_detaching_restores_the_model(name):
    model = tiny_model()
    ids = random_ids(120)[None]
    before = model(ids).logits
    with mesa_lm.extrapolate(model, name):
        assert not torch.allclose(model(ids).logits, before)
    assert torch.equal(model(ids).logits, before)


def test_short_inputs_are_left_to_the_model():
    model = tiny_model()
    untouched = {"rerope": 11, "leaky_rerope": 11, "stair": 12, "self_extend": 10, "lm_infinite": 41, "dual_chunk": 25}
    untouched |= {"streaming_llm": 41, "dynamic_ntk": 41, "star": 20, "dpe": 41, "reattention": 22, "gali": 41}
    for name, length in untouched.items():
        ids = random_ids(length)[None]
        before = model(ids).logits
        with mesa_lm.extrapolate(model, name) as handle:
            assert torch.equal(model(ids).logits, before), name
            assert not handle.method.is_untouched(150, cached=False)


@pytest.mark.parametrize(
    ("name", "options", "longest"),
    [
        ("self_extend", {"group_size": 3, "neighbor_window": 10}, 102),  # 101//3 - 0//3 + 10 - 10/3 = 39.7 < 41
        ("self_extend", {"group_size": 3, "neighbor_window": 10, "offset": "floor"}, 102),
        ("stair", {"extrapolated_position": 20, "extrapolated_width": 4}, 101),
        ("leaky_rerope", {"window": 11, "scaling_factor": 2.5}, 84),
        ("mesa", {"extrapolated_position": 12, "last_chunk": 9, "reweave_every": 5, "extrapolated_width": 4}, 105),
        ("reattention", {"recall_clip": "all"}, 41),
        ("reattention", {"original_positions": True}, 41),
        ("linear", {"factor": 3}, 123),
        ("ntk", {"factor": 3}, 123),
        ("yarn", {"factor": 3}, 123),
        ("star", {}, 41),
        ("lampe", {"window": 5, "initial": 2, "map_length": 20}, 261),  # of keys 2..14 and more, 20 stand alike
        ("dpe", {"window": 10, "scale_factors": "7/3"}, 102),  # 101//3 - 0//3 + 10 - 10//3 = 40 < 41
        ("string", {"shift": 15, "local_value": 4}, 52),
        ("star", {"scaling": "yarn", "factor": 3}, 123),
    ],
)
def test_inputs_longer_than_the_setting_serves_are_warned_about_once(name, options, longest, caplog):
    model = tiny_model()
    with torch.no_grad(), mesa_lm.extrapolate(model, name, **options):
        model(random_ids(longest)[None])
        assert not caplog.text
        model(random_ids(longest + 1)[None])
        assert f"up to {longest} tokens, but the input has {longest + 1}" in caplog.text and name in caplog.text
        caplog.clear()
        model(random_ids(longest + 2)[None])
        assert not caplog.text


@pytest.mark.parametrize(
    "name",
    sorted(
        set(mesa_lm.available_methods()) - {"origin", "linear", "ntk", "yarn", "self_extend", "star", "string", "lampe"}
    ),
)
def test_defaults_serve_inputs_of_any_length(name, caplog):
    model = tiny_model()
    with torch.no_grad(), mesa_lm.extrapolate(model, name):
        model(random_ids(500)[None])
    assert not caplog.text


def test_impossible_settings_are_warned_about(caplog):
    model = tiny_model()
    for name, options, message in (
        ("rerope", {"window": 41}, "window=41 needs 42 positions, but the model was trained on 41"),
        ("self_extend", {"neighbor_window": 60}, "neighbor_window=60 needs 60 positions"),
        ("streaming_llm", {"start_size": 4, "recent_size": 40}, "start_size=4, recent_size=40 needs 45 positions"),
        ("lm_infinite", {"n_local": 41, "distance_limit": 77}, "needs 77 positions"),
        ("dual_chunk", {"chunk_size": 41}, "chunk_size=41 needs 42 positions"),
        ("infllm", {"n_local": 42}, "n_local=42 needs 42 positions"),
        ("reattention", {"n_local": 39}, "n_init=2, n_local=39, recall_clip=1, span=2 needs 43 positions"),
    ):
        caplog.clear()
        mesa_lm.extrapolate(model, name, **options).remove()
        assert message in caplog.text
