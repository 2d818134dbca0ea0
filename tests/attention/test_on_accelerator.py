"""Every method on a stand-in for a GPU: what CUDA refuses is not asked of it, and the results are the CPU's."""

import pytest
import torch
from helpers import distinct_ids, random_ids
from method_cases import CASES
from stand_in_accelerator import OnDevice, StandIn, on_device, on_host
from tiny_models import tiny_model

import mesa_lm

# Angles of keys that change with every token; which keys stand one step nearer.
COPIES = {"dynamic_ntk": 3, "stair": 2, "infllm": 7, "reattention": 6}
CHOOSING = ("infllm", "reattention")
# How many keys a layer has chosen, in each of the two.
WAITS = {"reattention": 2}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.2, torch.float16: 0.04}


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


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_the_cpu(name, dtype):
    options = {"vocab_size": 211} if name in CHOOSING else {}
    model, ids = tiny_model(**options).to(dtype), (distinct_ids if name in CHOOSING else random_ids)(153)
    prompt, tokens = ids[None, :150], [token.view(1, 1) for token in ids[150:]]
    expected, _ = run(model, name, prompt, tokens)
    there = on_device(tiny_model(**options).to(dtype))
    with StandIn() as stand_in:
        found, taken = run(there, name, OnDevice(prompt), [OnDevice(token) for token in tokens], stand_in)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE[dtype], rtol=0)
    assert taken.get("waits", 0) == WAITS.get(name, 0)
    assert taken.get("copies", 0) <= COPIES.get(name, 1)
    if name not in ("linear", "ntk", "yarn"):
        assert stand_in.counts["efficient" if dtype == torch.float32 else "flash"] > 0


def test_what_cuda_refuses_is_refused():
    with StandIn():
        device, host = OnDevice(torch.ones(3)), torch.ones(3)
        assert torch.equal(on_host(device + 1), host + 1)
        for operation in (lambda: device + host, lambda: host[OnDevice(torch.tensor([1]))]):
            with pytest.raises(RuntimeError, match="two devices"):
                operation()
        states = OnDevice(torch.ones(1, 2, 5, 8))
        with pytest.raises(AssertionError, match="does not run on CUDA"):
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(states, states, states, 0.0, True, scale=1.0)
        with pytest.raises(AssertionError):
            torch.ops.aten._scaled_dot_product_flash_attention(states, states, states, 0.0, True, scale=1.0)
