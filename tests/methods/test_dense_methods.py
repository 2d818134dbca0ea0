"""Every method over full attention, on whole models: against the dense oracle, in batches, pieces and generation."""

import oracles
import pytest
import torch
from helpers import decode, pad, random_ids, together_and_alone
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, tiny_model

import mesa_lm

T = 41
HEAD_DIM = 6
# float32 passes against a float64 oracle; logits are of the order of 10.
TOLERANCE = 3e-4

booleans, windows = st.booleans(), st.integers(1, 45)
METHODS = {
    "rerope": st.fixed_dictionaries({"window": windows, "log_n": booleans}),
    "leaky_rerope": st.fixed_dictionaries(
        {"window": st.integers(1, 40), "scaling_factor": st.none() | st.floats(1, 20), "log_n": booleans}
    ),
    "stair": st.fixed_dictionaries(
        {"extrapolated_position": st.integers(0, 45), "extrapolated_width": st.integers(1, 60), "log_n": booleans}
    ),
    "self_extend": st.fixed_dictionaries(
        {
            "group_size": st.integers(1, 12),
            "neighbor_window": windows,
            "offset": st.sampled_from(("exact", "floor")),
            "log_n": booleans,
        }
    ),
    "lm_infinite": st.fixed_dictionaries(
        {"n_global": st.integers(0, 20), "n_local": windows, "distance_limit": st.none() | st.integers(0, 150)}
    ),
    "streaming_llm": st.fixed_dictionaries({"start_size": st.integers(0, 9), "recent_size": st.integers(0, 45)}),
    "dual_chunk": st.fixed_dictionaries(
        {"chunk_size": st.integers(11, 45), "local_window": st.integers(1, 10), "mscale": booleans}
    ),
    "linear": st.fixed_dictionaries({"factor": st.floats(1, 9)}),
    "ntk": st.fixed_dictionaries({"factor": st.floats(1, 9)}),
    "dynamic_ntk": st.fixed_dictionaries(
        {"factor": st.floats(1, 9), "cached_keys": st.sampled_from(("current", "stale"))}
    ),
    "yarn": st.fixed_dictionaries(
        {
            "factor": st.floats(1, 9),
            "beta_fast": st.floats(2, 40),
            "beta_slow": st.floats(0.1, 2),
            "attention_factor": st.none() | st.floats(0.5, 2),
            "truncate": booleans,
        }
    ),
}
DRAWN = st.sampled_from(sorted(METHODS)).flatmap(lambda name: st.tuples(st.just(name), METHODS[name]))
# Lengths that matter to nothing in particular, and to all: beyond every window.
DEFAULTS = sorted(set(mesa_lm.available_methods()) - {"origin", "mesa"})


def pairs(name, options, prompt, total):
    rope = {"head_dim": HEAD_DIM, "base": 10000.0}
    logn = options.get("log_n", False)
    match name:
        case "rerope":
            return oracles.rerope_pairs(prompt, total, T=T, w=options["window"], logn=logn)
        case "leaky_rerope":
            k = options["scaling_factor"]
            return oracles.leaky_pairs(prompt, total, T=T, w=options["window"], k=k, logn=logn)
        case "stair":
            near, width = options["extrapolated_position"], options["extrapolated_width"]
            return oracles.stair_pairs(prompt, total, T=T, N=near, E=width, logn=logn)
        case "self_extend":
            exact = options["offset"] == "exact"
            group, window = options["group_size"], options["neighbor_window"]
            return oracles.self_extend_pairs(prompt, total, T=T, G=group, w=window, exact=exact, logn=logn)
        case "lm_infinite":
            limit = options["n_local"] if options["distance_limit"] is None else options["distance_limit"]
            return oracles.lm_infinite_pairs(prompt, total, L=options["n_local"], G=options["n_global"], D=limit)
        case "streaming_llm":
            return oracles.streaming_pairs(prompt, total, S=options["start_size"], R=options["recent_size"])
        case "dual_chunk":
            chunk, window = options["chunk_size"], options["local_window"]
            return oracles.dual_chunk_pairs(prompt, total, T=T, C=chunk, w=window, mscale=options["mscale"])
        case "linear":
            return oracles.scaled_rope_pairs(
                prompt, total, **rope, stretch=lambda length: 1.0, divide=options["factor"]
            )
        case "ntk":
            return oracles.scaled_rope_pairs(prompt, total, **rope, stretch=lambda length: options["factor"])
        case "dynamic_ntk":
            factor = options["factor"]
            scaled = oracles.scaled_rope_pairs(
                prompt, total, **rope, stretch=lambda length: max(1.0, factor * length / T - (factor - 1))
            )
            return scaled._replace(own_keys=options["cached_keys"] == "stale")
        case "yarn":
            named = {"fast": options["beta_fast"], "slow": options["beta_slow"]}
            same = {name: options[name] for name in ("factor", "attention_factor", "truncate")}
            return oracles.yarn_pairs(prompt, total, **rope, T=T, **named, **same)


@settings(max_examples=120)
@given(drawn=DRAWN, prompt=st.integers(1, 130), new=st.integers(0, 5), kv_heads=st.sampled_from((1, 2, 4)))
def test_prefill_and_decode_equal_the_oracle(drawn, prompt, new, kv_heads):
    name, options = drawn
    model = tiny_model(kv_heads=kv_heads)
    ids = random_ids(prompt + new)
    with torch.no_grad(), mesa_lm.extrapolate(model, name, **options):
        logits = decode(model, ids, prompt)
    expected = oracles.dense_logits(model, ids, pairs(name, options, prompt, prompt + new))
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
    model = tiny_model()
    rows = [random_ids(length, seed) for seed, length in enumerate(lengths)]
    with torch.no_grad(), mesa_lm.extrapolate(model, name, **options):
        for batched, alone in together_and_alone(model, rows, side, random_ids(new, 99)):
            torch.testing.assert_close(batched, alone, atol=TOLERANCE, rtol=0)


@settings(max_examples=40)
@given(
    drawn=DRAWN.filter(lambda drawn: drawn[0] not in ("dual_chunk", "lm_infinite", "dynamic_ntk", "leaky_rerope")),
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
        monkeypatch.setattr(mesa_lm.available_methods()[name], "block_len", 23)
        torch.testing.assert_close(model(ids).logits, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", DEFAULTS)
def test_generation_in_a_batch_and_alone(family, name):
    model = tiny_model(family)
    rows = [random_ids(length, length) for length in (97, 30, 38)]
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
    for name, length in {**untouched, "streaming_llm": 41, "dynamic_ntk": 41}.items():
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
        ("linear", {"factor": 3}, 123),
        ("ntk", {"factor": 3}, 123),
        ("yarn", {"factor": 3}, 123),
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
    "name", sorted(set(mesa_lm.available_methods()) - {"origin", "linear", "ntk", "yarn", "self_extend"})
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
    ):
        caplog.clear()
        mesa_lm.extrapolate(model, name, **options).remove()
        assert message in caplog.text
