"""Every model family with every method, against its own code over explicit pairs."""

import itertools

import oracles
import pytest
import torch
from family_oracle import family_logits
from family_pairs import OPTIONS, pairs_of
from helpers import decode, distinct_ids, pad, random_ids, together_and_alone
from method_cases import CASES
from zoo import CACHE_LOST, SCALING, UNSCALED, VARIANTS, T, tiny

import mesa_lm
from mesa_lm.errors import ModelError
from mesa_lm.harness.shared_context import continuation_logits

PROMPT, NEW = 61, 3
# float32 passes against float64; logits are of the order of 5.
TOLERANCE = 2e-4
CELLS = [(v, m) for v, m in itertools.product(VARIANTS, OPTIONS) if not (v in UNSCALED and m in SCALING)]


def check_cell(variant, name, prompt=PROMPT, new=NEW):
    model = tiny(variant, vocab_size=211)
    ids = distinct_ids(prompt + new)
    with torch.no_grad(), mesa_lm.extrapolate(model, name, **OPTIONS[name]) as handle:
        logits = decode(model, ids, prompt)
        bound = handle.method
    pairs, factor = pairs_of(variant, name, bound, prompt, prompt + new)
    expected = family_logits(model, ids, pairs, T, factor)
    torch.testing.assert_close(logits.double(), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("variant", "name"), CELLS)
def test_every_cell_equals_the_oracle(variant, name):
    check_cell(variant, name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_a_method_leaves_alone_is_the_untouched_model(variant):
    """Origin everywhere; every method on inputs that it leaves alone; and nothing remains after detaching."""
    model = tiny(variant)
    short = random_ids(T)[None]
    with torch.no_grad():
        before = model(short).logits
        with mesa_lm.extrapolate(model, "origin"):
            assert torch.equal(model(short).logits, before)
        for name in OPTIONS:
            if name in ("ntk", "linear", "yarn") or (variant in UNSCALED and name in SCALING):
                continue
            # Windows of T tokens, so that nothing is beyond them.
            options = {
                "rerope": {"window": T, "log_n": False},
                "leaky_rerope": {"window": T - 1},
                "stair": {"extrapolated_position": T},
                "self_extend": {"neighbor_window": T},
                "lm_infinite": {"n_local": T},
                "streaming_llm": {"start_size": 2, "recent_size": T},
                "dual_chunk": {"chunk_size": 2 * T, "local_window": 2},
                "infllm": {"n_local": T},
                "reattention": {"n_local": T},
                "star": {"block_size": T},
                "dpe": {"window": T},
                "lampe": {"window": T, "rope_scale": 1},
                "string": {"shift": T, "rope_scale": 1},
            }.get(name, {})
            with mesa_lm.extrapolate(model, name, **options):
                assert torch.equal(model(short, use_cache=False).logits, before), name
        assert torch.equal(model(short).logits, before)


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant not in ("mpt", "gptj")])
def test_origin_is_the_untouched_model_at_any_length(variant):
    """MPT and GPT-J, whose tables end at T: `test_position_tables`."""
    model, long = tiny(variant), random_ids(2 * T)[None]
    with torch.no_grad():
        expected = model(long).logits
        with mesa_lm.extrapolate(model, "origin"):
            assert torch.equal(model(long).logits, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_of_a_batch_are_their_own(variant):
    """Rows within and beyond T, padded on either side, decoded across T."""
    model = tiny(variant)
    rows = [random_ids(length, length) for length in (11, T - 1, 59, 41, 59)]
    for name, side in (("mesa", "left"), ("rerope", "right")):
        with torch.no_grad(), mesa_lm.extrapolate(model, name):
            for batched, alone in together_and_alone(model, rows, side, random_ids(3, 99)):
                torch.testing.assert_close(batched, alone, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_generation_with_and_without_cache_across_the_training_length(variant):
    """From T - 13 tokens on, the untouched model's cache is taken over, sliding layers' shortened ones included."""
    model = tiny(variant)
    options = {"max_new_tokens": 19, "min_new_tokens": 19, "do_sample": False, "pad_token_id": 0}
    with mesa_lm.extrapolate(model, "rerope", window=11):
        ids = random_ids(T - 13)[None]
        if variant in CACHE_LOST:
            with pytest.raises(ModelError, match="24 columns for 1 tokens without a cache"):
                model.generate(ids, **options)
            return
        cached = model.generate(ids, **options)
        if variant != "llama-dynamic":  # there every length has its own frequencies, and the cache those of its time
            assert torch.equal(cached, model.generate(ids, use_cache=False, **options))
        if variant != "phi3-longrope":  # it drops its cache where the padded batch, not the row, passes T
            together = model.generate(**pad([ids[0], random_ids(T + 8, 1)], "left"), **options)
            assert torch.equal(together[0, -19:], cached[0, -19:])


@pytest.mark.parametrize("variant", ["gemma2", "phi3-longrope", "llama-dynamic", "cohere2", "mpt"])
def test_long_prompts_are_run_in_passes(variant, monkeypatch):
    """Several blocks of middle chunks, several passes, queries in small blocks: as in one."""
    model, ids = tiny(variant), random_ids(211)
    rows = pad([ids, ids.flip(0), ids[:97]], "right")
    for name in ("mesa", "rerope", "lm_infinite"):
        with torch.no_grad(), mesa_lm.extrapolate(model, name):
            expected, batch = decode(model, ids, 205), model(**rows).logits
            with monkeypatch.context() as small:
                small.setattr("mesa_lm.attention.pass_plan.PASS_TOKENS", 53)
                torch.testing.assert_close(decode(model, ids, 205), expected, atol=TOLERANCE, rtol=0)
                torch.testing.assert_close(model(**rows).logits, batch, atol=TOLERANCE, rtol=0)


def test_sliding_layers_keep_their_window_beyond_the_training_length():
    """With a window in every layer, every method is the untouched model, and says so."""
    model = tiny("mistral-window")
    ids = random_ids(71)
    with torch.no_grad():
        expected = model(ids[None]).logits[0]
        for name in OPTIONS:
            with mesa_lm.extrapolate(model, name, **OPTIONS[name]):
                torch.testing.assert_close(decode(model, ids, 67), expected, atol=TOLERANCE, rtol=0)


def test_a_model_of_windows_only_is_warned_about(caplog):
    mesa_lm.extrapolate(tiny("mistral-window"), "mesa").remove()
    assert "the method changes nothing" in caplog.text


def test_soft_capping_and_windows_matter():
    """The oracle tests would say nothing if the tiny models did not depend on these."""
    ids = random_ids(61)[None]
    with torch.no_grad():
        for variant, changes in (("gemma2", {"attn_logit_softcapping": None}), ("gemma2", {"sliding_window": 9})):
            models = tiny(variant), tiny(variant, **changes)
            logits = []
            for model in models:
                with mesa_lm.extrapolate(model, "mesa"):
                    logits.append(model(ids).logits)
            assert (logits[0] - logits[1]).abs().max() > 0.05


def test_mesa_on_alibi_needs_no_approximation():
    """A bias that depends on the key alone, as MPT's own code has it, is the exact one in Mesa's last chunk."""
    model, ids = tiny("mpt"), random_ids(61)
    with torch.no_grad(), mesa_lm.extrapolate(model, "mesa") as handle:
        logits = model(ids[None]).logits[0].double()
        pairs, _ = pairs_of("mpt", "mesa", handle.method, 61, 61)
        last = handle.method.layout(61).last_start
    by_key = pairs.distance.clone()
    by_key[last:] = by_key[-1]
    approximate = family_logits(model, ids, pairs._replace(distance=by_key), T)
    torch.testing.assert_close(logits[last:], approximate[last:], atol=TOLERANCE, rtol=0)


def test_a_bias_by_key_alone_would_disturb_methods_that_weave_every_query():
    """What MPT's code builds, one bias for all queries, is right for the last query of ReRoPE and wrong before."""
    model, ids = tiny("mpt"), random_ids(61)
    with torch.no_grad(), mesa_lm.extrapolate(model, "rerope", window=5, log_n=False):
        logits = model(ids[None]).logits[0].double()
    pairs = oracles.rerope_pairs(61, 61, T=T, w=5, logn=False)
    approximate = pairs._replace(distance=pairs.distance[-1:].expand(61, -1))
    first_layer_only = tiny("mpt", n_layers=1)
    with torch.no_grad(), mesa_lm.extrapolate(first_layer_only, "rerope", window=5, log_n=False):
        exact = first_layer_only(ids[None]).logits[0].double()
    error = (family_logits(first_layer_only, ids, approximate, T) - exact).abs().amax(-1)
    assert error[-1] < TOLERANCE < 0.5 < error[:-5].median()
    assert (family_logits(model, ids, approximate, T) - logits)[-1].abs().max() > 0.1


def test_unknown_attention_is_refused_by_name():
    class FlashyAttention(type(tiny("llama").model.layers[0].self_attn)):
        pass

    model = tiny("llama")
    model.model.layers[1].self_attn.__class__ = FlashyAttention
    with pytest.raises(ModelError, match=r"FlashyAttention at 'model.layers.1.self_attn' is not one that methods"):
        mesa_lm.extrapolate(model, "mesa")
    model = tiny("llama")
    model.model.layers[1].self_attn = torch.nn.Identity()
    with pytest.raises(ModelError, match=r"2 layers, but attention modules were found in layers \[0\]"):
        mesa_lm.extrapolate(model, "mesa")
    with mesa_lm.extrapolate(model, "origin"):
        pass  # a failed attempt leaves nothing behind


# Layers with a window, or frequencies that follow the input's length: what a beginning leaves depends on what follows.
BOUND_TO_LENGTH = (
    "mistral-window",
    "qwen2-window",
    "gemma2",
    "gemma3_text",
    "cohere2",
    "olmo3",
    "llama-dynamic",
    "phi3-longrope",
)


def keeps_beginnings(variant, method):
    return CASES[method].shares and variant not in BOUND_TO_LENGTH


@pytest.mark.parametrize(("variant", "method"), CELLS)
def test_which_models_keep_beginnings(variant, method):
    with mesa_lm.extrapolate(tiny(variant), method, **OPTIONS[method]) as handle:
        assert handle.keeps_beginnings == keeps_beginnings(variant, method)


@pytest.mark.parametrize(("variant", "method"), [cell for cell in CELLS if keeps_beginnings(*cell)])
def test_continuations_share_a_prefill(variant, method):
    """What `keeps_beginnings` allows gives the logits of passes of their own."""
    model = tiny(variant)
    context = random_ids(PROMPT, seed=3).tolist()
    continuations = [[7, 11, 13], [5], [7, 11, 13, 17, 19]]
    with mesa_lm.extrapolate(model, method, **OPTIONS[method]), torch.no_grad():
        shared = list(continuation_logits(model, context, continuations, torch.device("cpu")))
        for continuation, logits in zip(continuations, shared, strict=True):
            row = torch.tensor([[*context, *continuation[:-1]]])
            own = model(row, use_cache=False).logits[0, -len(continuation) :]
            torch.testing.assert_close(logits, own, atol=TOLERANCE, rtol=0)
