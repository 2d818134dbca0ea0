"""Every method on a stand-in for a GPU: what CUDA refuses is not asked of it, and the results are the CPU's."""

import pytest
import torch
from helpers import distinct_ids, pad, random_ids
from method_cases import CASES
from stand_in_accelerator import OnDevice, StandIn, on_device, on_host, on_two_devices
from tiny_models import tiny_model

import mesa_lm
from mesa_lm.harness.shared_context import continuation_logits

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# Of 16 bits: how far logits may be from those in float64, against how far the CPU's are from them.
FARTHER = 1.1

CHOOSING = ("infllm", "reattention")
COPIES = {"infllm": 7, "reattention": 6}
# How many keys a layer has chosen, in each of the two.
WAITS = {"reattention": 2}


def run(model, name, prompt, tokens, stand_in=None):
    """Logits of a prompt and of tokens after it; and what the last token counts."""
    # In sixteen bits another kernel's rounding may choose other keys: there all are chosen.
    half = name in CHOOSING and model.dtype != torch.float32
    options = CASES[name].short | ({"topk": 999} if half else {})
    with mesa_lm.extrapolate(model, name, **options), torch.no_grad():
        output = model(prompt, use_cache=True)
        logits = [output.logits]
        for token in tokens:
            counts = {} if stand_in is None else dict(stand_in.counts)
            output = model(token, past_key_values=output.past_key_values, use_cache=True)
            logits.append(output.logits)
    taken = {} if stand_in is None else {key: stand_in.counts[key] - counts.get(key, 0) for key in stand_in.counts}
    return [on_host(one).float() for one in logits], taken


def error(logits, exact):
    """Root mean square of the differences."""
    return torch.cat([(one - other).flatten() for one, other in zip(logits, exact, strict=True)]).square().mean().sqrt()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_the_cpu(name, dtype):
    options = {"vocab_size": 211} if name in CHOOSING else {}
    model, ids = tiny_model(**options).to(dtype), (distinct_ids if name in CHOOSING else random_ids)(153)
    prompt, tokens = ids[None, :150], [token.view(1, 1) for token in ids[150:]]
    expected, _ = run(model, name, prompt, tokens)
    there = on_device(tiny_model(**options).to(dtype))
    with StandIn() as stand_in:
        found, taken = run(there, name, OnDevice(prompt), [OnDevice(token) for token in tokens], stand_in)
    if dtype == torch.float32:
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    else:
        exact, _ = run(model.double(), name, prompt, tokens)
        assert error(found, exact) <= FARTHER * error(expected, exact)
    assert taken.get("waits", 0) == WAITS.get(name, 0)
    assert taken.get("copies", 0) <= COPIES.get(name, 1)
    if name not in ("linear", "ntk", "yarn"):
        assert stand_in.counts["efficient" if dtype == torch.float32 else "flash"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_model_may_lie_on_two_devices(name, dtype):
    """Nothing that the layers share is where a layer is not, and the results are those of one device."""
    ids = random_ids(153)
    prompt, tokens = OnDevice(ids[None, :150]), [OnDevice(token.view(1, 1)) for token in ids[150:]]
    with StandIn() as stand_in:
        expected, _ = run(on_device(tiny_model().to(dtype)), name, prompt, tokens)
        assert stand_in.counts["moves"] == 0
        found, taken = run(on_two_devices(tiny_model().to(dtype)), name, prompt, tokens, stand_in)
    assert stand_in.counts["moves"] > 0 and taken.get("waits", 0) == WAITS.get(name, 0)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("name", CASES)
def test_generation_of_a_padded_batch_is_that_of_the_cpu(name, options):
    batch = pad([random_ids(97), random_ids(30, seed=1), random_ids(38, seed=2)], "left")
    options = {**options, "max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None, "do_sample": False}
    model = tiny_model()
    with mesa_lm.extrapolate(model, name, **CASES[name].short):
        expected = model.generate(**batch, **options)
    with StandIn(), mesa_lm.extrapolate(on_device(model), name, **CASES[name].short):
        found = model.generate(**{key: OnDevice(value) for key, value in batch.items()}, **options)
    assert torch.equal(on_host(found), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chunks_are_shared_on_the_device(dtype):
    document = random_ids(211)
    prompts = [torch.cat([document, random_ids(length, seed=length)])[None] for length in (3, 5, 7)]
    options = {"train_length": 41, "first_chunk": 3, "chunk_width": 31, "last_chunk": 13}
    model = on_device(tiny_model().to(dtype))
    with StandIn(), torch.no_grad(), mesa_lm.extrapolate(model, "mesa", **options) as handle:
        expected = [model(OnDevice(prompt), logits_to_keep=1).logits for prompt in prompts]
        handle.reuse_chunks(2**20)
        found = [model(OnDevice(prompt), logits_to_keep=1).logits for prompt in prompts]
        assert handle.store.hits == 12
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(on_host(one), on_host(other), atol=1e-3 if dtype != torch.float32 else 1e-5, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.shares])
def test_contexts_are_shared_on_the_device(name, dtype):
    context, model = random_ids(90).tolist(), tiny_model().to(dtype)
    continuations = [random_ids(count, seed=count).tolist() for count in (3, 1, 9)]

    def logits(device):
        with torch.no_grad(), mesa_lm.extrapolate(model, name, **CASES[name].short):
            return [on_host(one).float() for one in continuation_logits(model, context, continuations, device)]

    expected = logits("cpu")
    exact = expected
    if dtype != torch.float32:
        model.double()
        exact = logits("cpu")
        model.to(dtype)
    on_device(model)
    with StandIn():
        found = logits("cuda")
    if dtype == torch.float32:
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    else:
        assert error(found, exact) <= 1.5 * error(expected, exact)  # of few logits


def test_what_cuda_refuses_is_refused():
    with StandIn():
        device, host = OnDevice(torch.ones(3)), torch.ones(3)
        assert torch.equal(on_host(device + 1), host + 1)
        other = OnDevice(torch.ones(3), torch.device("cuda:1"))
        assert torch.equal(on_host(device + other.to("cuda")), host + 1)
        for operation in (
            lambda: device + host,
            lambda: host[OnDevice(torch.tensor([1]))],
            lambda: device + other,
            lambda: torch.cat([device, other]),
            lambda: device[other.long()],
        ):
            with pytest.raises(RuntimeError, match="two devices"):
                operation()
        states = OnDevice(torch.ones(1, 2, 5, 8))
        with pytest.raises(AssertionError, match="does not run on CUDA"):
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(states, states, states, 0.0, True, scale=1.0)
        with pytest.raises(AssertionError):
            torch.ops.aten._scaled_dot_product_flash_attention(states, states, states, 0.0, True, scale=1.0)
