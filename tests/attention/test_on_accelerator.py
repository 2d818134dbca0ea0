"""Every method on a stand-in for a GPU: what CUDA refuses is not asked of it, and the results are the CPU's."""

import pytest
import torch
from helpers import random_ids
from method_cases import CASES
from stand_in_accelerator import OnDevice, StandIn, on_device, on_host
from tiny_models import tiny_model

import mesa_lm

# Of 16 bits: how far logits may be from those in float64, against how far the CPU's are from them.
FARTHER = 1.1


def run(model, name, prompt, tokens, stand_in=None):
    """Logits of a prompt and of tokens after it; and what the last token counts."""
    with mesa_lm.extrapolate(model, name, **CASES[name].short), torch.no_grad():
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_the_cpu(name, dtype):
    model, ids = tiny_model().to(dtype), random_ids(153)
    prompt, tokens = ids[None, :150], [token.view(1, 1) for token in ids[150:]]
    expected, _ = run(model, name, prompt, tokens)
    with StandIn() as stand_in:
        found, taken = run(
            on_device(tiny_model().to(dtype)), name, OnDevice(prompt), [OnDevice(token) for token in tokens], stand_in
        )
    if dtype == torch.float32:
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    else:
        exact, _ = run(model.double(), name, prompt, tokens)
        assert error(found, exact) <= FARTHER * error(expected, exact)
    assert taken.get("waits", 0) == 0
    assert taken.get("copies", 0) <= 1
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
