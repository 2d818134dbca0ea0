"""Mesa-Extrapolation on whole models: against the dense oracle, and the properties that must always hold."""

import re
from pathlib import Path

import pytest
import torch
from helpers import decode, pad, random_ids, together_and_alone
from hypothesis import example, given, settings
from hypothesis import strategies as st
from method_cases import CASES, Setting
from oracles import dense_logits
from tiny_models import FAMILIES, tiny_model
from transformers import AutoConfig

import mesa_lm
from mesa_lm.attention.cache_layer import woven_layer
from mesa_lm.demo import MODEL_PATH

T = 41
# float32 passes against a float64 oracle; logits are of the order of 10.
TOLERANCE = 2e-4


def oracle(model, ids, prompt, method):
    """The dense answer for a prompt and the tokens decoded after it."""
    pairs = CASES["mesa"].pairs(method.bind(model.config), prompt, len(ids), Setting(T, head_dim=6, base=10000.0))
    return dense_logits(model, ids, pairs)


@st.composite
def methods(draw):
    """Parameters that fit T = 41."""
    first = draw(st.integers(1, 12))
    last = draw(st.integers(1, 14))
    weave = draw(st.sampled_from(("stair", "stair", "rerope", "leaky_rerope", "self_extend")))
    return mesa_lm.Mesa(
        weave=weave,
        first_chunk=first,
        last_chunk=last,
        chunk_width=draw(st.none() | st.integers(1, T - first)),
        split_margin=draw(st.integers(1, 9)),
        extrapolated_position=draw(st.integers(0, 14)),
        extrapolated_width="auto" if weave == "rerope" else draw(st.just("auto") | st.integers(1, 60)),
        reweave_every=draw(st.integers(1, 9)),
        reserve=draw(st.sampled_from((0, 0, 7))),
        log_n=draw(st.booleans()),
    )


@settings(max_examples=40)
@given(method=methods(), prompt=st.integers(1, 130), new=st.integers(0, 7), kv_heads=st.sampled_from((1, 2, 4)))
@example(method=mesa_lm.Mesa(weave="leaky_rerope"), prompt=129, new=7, kv_heads=2)
@example(method=mesa_lm.Mesa(weave="self_extend"), prompt=129, new=7, kv_heads=2)
@example(method=mesa_lm.Mesa(), prompt=T, new=7, kv_heads=2)
@example(method=mesa_lm.Mesa(), prompt=T + 1, new=1, kv_heads=2)
@example(method=mesa_lm.Mesa(), prompt=129, new=7, kv_heads=2)
def test_prefill_and_decode_equal_the_oracle(method, prompt, new, kv_heads):
    model = tiny_model(kv_heads=kv_heads)
    ids = random_ids(prompt + new)
    with torch.no_grad(), mesa_lm.extrapolate(model, method):
        logits = decode(model, ids, prompt)
    torch.testing.assert_close(logits.double(), oracle(model, ids, prompt, method), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_the_oracle(family):
    model = tiny_model(family)
    ids = random_ids(137)
    with torch.no_grad(), mesa_lm.extrapolate(model, "mesa"):
        logits = decode(model, ids, 127)
    torch.testing.assert_close(logits.double(), oracle(model, ids, 127, mesa_lm.Mesa()), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    model = tiny_model()
    ids = random_ids(127)
    expected = oracle(model, ids, 119, mesa_lm.Mesa())
    model = model.to(dtype)
    with torch.no_grad(), mesa_lm.extrapolate(model, "mesa"):
        logits = decode(model, ids, 119)
    # Half precisions round every activation: 2**-8 and 2**-11 relative, over two layers. Angles stay float32 in all.
    atol = {torch.float64: 1e-4, torch.bfloat16: 0.6, torch.float16: 0.1}[dtype]
    rms = (logits.double() - expected).pow(2).mean().sqrt()
    assert rms < atol, rms


def test_within_the_training_length_nothing_changes(llama):
    ids = random_ids(T)[None]
    before, last = llama(ids).logits, llama(ids, logits_to_keep=3).logits
    with mesa_lm.extrapolate(llama, "mesa"):
        assert torch.equal(llama(ids).logits, before)
        assert torch.equal(llama(ids, logits_to_keep=3).logits, last)
    assert "forward" not in llama.__dict__
    long = random_ids(3 * T)[None]
    untouched = tiny_model()(long).logits
    assert torch.equal(llama(long).logits, untouched)


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    side=st.sampled_from(("left", "right")),
    new=st.integers(0, 3),
)
@example(lengths=[150, 20, 150, 42], side="left", new=3)
def test_a_row_does_not_depend_on_its_batch(lengths, side, new):
    model = tiny_model()
    rows = [random_ids(length, seed) for seed, length in enumerate(lengths)]
    with torch.no_grad(), mesa_lm.extrapolate(model, "mesa"):
        for batched, alone in together_and_alone(model, rows, side, random_ids(new, 99)):
            torch.testing.assert_close(batched, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("keep", [1, 5, 60, 1000, torch.tensor([0, 70, 3, 129]), torch.tensor([-1, -129])])
def test_logits_to_keep_equals_slicing(llama, keep):
    batch = pad([random_ids(130), random_ids(57, 1)], "left")
    with torch.no_grad(), mesa_lm.extrapolate(llama, "mesa"):
        full = llama(**batch).logits
        part = llama(**batch, logits_to_keep=keep).logits
    expected = full[:, -keep:] if isinstance(keep, int) else full[:, keep]
    torch.testing.assert_close(part, expected, atol=1e-5, rtol=0)


def test_logits_nobody_asked_for_are_not_computed(llama):
    rows = []
    llama.lm_head.register_forward_hook(lambda module, args, output: rows.append(output.shape[:-1].numel()))
    with torch.no_grad(), mesa_lm.extrapolate(llama, "mesa"):
        llama(random_ids(500)[None], logits_to_keep=2)
    assert sum(rows) == 2


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 3}], ids=["greedy", "sampling", "beams"])
def test_generate_continues_each_row_by_itself(llama, options):
    rows = [random_ids(length, length) for length in (97, 38, 150, 97)]
    options = {"max_new_tokens": 9, "pad_token_id": 0, **options}
    with mesa_lm.extrapolate(llama, "mesa"):
        torch.manual_seed(1)
        batch = pad(rows, "left")
        together = llama.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
        assert together.shape[1] > 0
        if options.get("do_sample"):
            return  # draws are shared by the batch
        for row, expected in zip(rows, together, strict=True):
            alone = llama.generate(input_ids=row[None], **options)[0, len(row) :]
            assert torch.equal(alone, expected[: len(alone)])


def test_greedy_generation_follows_the_oracle(llama):
    ids = random_ids(101)
    with mesa_lm.extrapolate(llama, "mesa"):
        generated = llama.generate(ids[None], max_new_tokens=12, eos_token_id=None)[0]
    logits = oracle(llama, generated, 101, mesa_lm.Mesa())
    assert torch.equal(generated[101:], logits[100:-1].argmax(-1))


def test_generation_across_the_training_length(llama):
    ids = random_ids(T - 3)
    with mesa_lm.extrapolate(llama, "mesa"):
        generated = llama.generate(ids[None], max_new_tokens=9, eos_token_id=None)[0]
    logits = oracle(llama, generated, T - 3, mesa_lm.Mesa())
    assert torch.equal(generated[T - 3 :], logits[T - 4 : -1].argmax(-1))


def test_embeddings_instead_of_ids(llama):
    ids = random_ids(123)[None]
    with torch.no_grad(), mesa_lm.extrapolate(llama, "mesa"):
        expected = llama(ids).logits
        embedded = llama(inputs_embeds=llama.get_input_embeddings()(ids)).logits
    torch.testing.assert_close(embedded, expected)


def test_loss_is_that_of_the_logits(llama):
    ids = random_ids(123)[None]
    with torch.no_grad(), mesa_lm.extrapolate(llama, "mesa"):
        output = llama(ids, labels=ids)
    expected = torch.nn.functional.cross_entropy(output.logits[0, :-1], ids[0, 1:])
    torch.testing.assert_close(output.loss, expected)
    with torch.no_grad(), mesa_lm.extrapolate(llama, "mesa"):
        loss, *_ = llama(ids, labels=ids, return_dict=False)
    torch.testing.assert_close(loss, expected)


def test_a_long_continuation_is_appended_in_pieces(llama):
    """Feeding 60 tokens at once equals feeding them by pieces of the shortest last chunk."""
    ids = random_ids(160)[None]
    piece = mesa_lm.Mesa().bind(llama.config).last_chunk
    with torch.no_grad(), mesa_lm.extrapolate(llama, "mesa"):
        output = llama(ids[:, :100], use_cache=True)
        at_once = llama(ids[:, 100:], past_key_values=output.past_key_values).logits
        output = llama(ids[:, :100], use_cache=True)
        logits = []
        for part in ids[:, 100:].split(piece, dim=1):
            output = llama(part, past_key_values=output.past_key_values)
            logits.append(output.logits)
    torch.testing.assert_close(at_once, torch.cat(logits, dim=1), atol=1e-5, rtol=0)


def test_no_cache_is_returned_unless_asked_for(llama):
    ids = random_ids(100)[None]
    with torch.no_grad(), mesa_lm.extrapolate(llama, "mesa"):
        assert llama(ids, use_cache=False).past_key_values is None
        assert woven_layer(llama(ids, use_cache=True).past_key_values).woven.columns == 100
        with_cache = llama.generate(ids, max_new_tokens=3, use_cache=True, eos_token_id=None)
        without = llama.generate(ids, max_new_tokens=3, use_cache=False, eos_token_id=None)
    assert with_cache.shape == without.shape == (1, 103)


def test_keys_are_stored_at_their_woven_positions(llama):
    """Cached keys of the first layer are the raw ones rotated to (I-1) - W(I-1-j)."""
    ids = random_ids(120)
    method = mesa_lm.Mesa(extrapolated_width=7)
    with torch.no_grad(), mesa_lm.extrapolate(llama, method) as handle:
        cache = woven_layer(llama(ids[None], use_cache=True).past_key_values).woven
        bound = handle.method
        layer = llama.model.layers[0]
        hidden = layer.input_layernorm(llama.model.embed_tokens(ids))
        raw = layer.self_attn.k_proj(hidden).view(120, 2, 6)
    near = cache.rows[0].weave.near
    assert near == max(bound.extrapolated_position, 120 - bound.layout(120).last_start)
    for j in range(120):
        distance = 119 - j
        position = 119 - (distance if distance <= near else near + -(-(distance - near) // 7))
        cos, sin = llama.model.rotary_emb(raw, torch.tensor([[position]]))
        rotated = raw[j] * cos[0] + torch.cat([-raw[j, :, 3:], raw[j, :, :3]], -1) * sin[0]
        torch.testing.assert_close(cache.keys[0][0, :, j], rotated, atol=1e-5, rtol=0)


def test_the_drawing_of_the_architecture_page_is_true():
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
    drawn = {line.split()[0]: list(map(int, re.findall(r"\d+", line))) for line in page.splitlines() if line.strip()}
    index, (*positions, count, keys) = drawn["j"], drawn["position"]

    method = mesa_lm.Mesa().bind(AutoConfig.from_pretrained(MODEL_PATH))
    layout = method.layout(keys)
    weave = method.next_weave(keys, keys - layout.last_start, keys, None)

    starts = [0, *range(layout.first, layout.last_start, layout.width), layout.last_start, keys - 1]
    assert drawn["index"] == index == starts
    assert weave.position(torch.tensor(index)).tolist() == positions
    assert count == positions[-1] - positions[0] + 1
