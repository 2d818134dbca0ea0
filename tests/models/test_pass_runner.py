"""Passes in other dtypes than the model had when the method was attached: autocast, and a model that is moved."""

import pytest
import torch
from family_pairs import OPTIONS
from helpers import decode, random_ids
from tiny_models import tiny_model
from zoo import VARIANTS, T, tiny

import mesa_lm

IDS = random_ids(97)
CONVERSIONS = {"bfloat16": lambda model: model.to(torch.bfloat16), "half": lambda model: model.half()}


def size(states):
    return float(states.float().pow(2).mean().sqrt())


def relative(found, expected):
    return size(found.float() - expected.float()) / size(expected)


@pytest.mark.parametrize("prompt", [90, 37], ids=["beyond", "crossing"])
@pytest.mark.parametrize("method", OPTIONS)
def test_autocast_rounds_as_it_does_in_the_untouched_model(method, prompt):
    model = tiny_model()
    # Rounding would choose other keys; so all are chosen.
    options = OPTIONS[method] | ({"topk": 999} if method in ("infllm", "reattention") else {})
    with torch.no_grad():
        short = model(IDS[None, :41]).logits
        with torch.autocast("cpu", torch.bfloat16):
            rounding = relative(model(IDS[None, :41]).logits, short)
        with mesa_lm.extrapolate(model, method, **options):
            expected = decode(model, IDS, prompt)
            with torch.autocast("cpu", torch.bfloat16):
                found = decode(model, IDS, prompt)
    assert found.dtype == torch.bfloat16
    assert relative(found, expected) < 3 * rounding


@pytest.mark.parametrize("name", [name for name in VARIANTS if "moe" not in name and name != "mixtral"])
def test_autocast_in_every_family(name):
    """But for experts, where rounding chooses other ones."""
    model, ids = tiny(name), random_ids(T + 9)
    with torch.no_grad():
        short = model(ids[None, :T]).logits
        with torch.autocast("cpu", torch.bfloat16):
            rounding = relative(model(ids[None, :T]).logits, short)
        with mesa_lm.extrapolate(model, "mesa"):
            expected = decode(model, ids, T - 3)
            with torch.autocast("cpu", torch.bfloat16):
                found = decode(model, ids, T - 3)
    assert relative(found, expected) < 3 * rounding


@pytest.mark.parametrize("conversion", CONVERSIONS)
@pytest.mark.parametrize("method", OPTIONS)
def test_a_model_converted_while_attached_is_one_attached_after(method, conversion):
    before, after = tiny_model(), tiny_model()
    with torch.no_grad():
        with mesa_lm.extrapolate(before, method, **OPTIONS[method]) as handle:
            handle.reuse_chunks(2**20)
            before(IDS[None])
            CONVERSIONS[conversion](before)
            found = decode(before, IDS, 90)
        CONVERSIONS[conversion](after)
        with mesa_lm.extrapolate(after, method, **OPTIONS[method]):
            expected = decode(after, IDS, 90)
    assert found.dtype == expected.dtype
    assert relative(found, expected) < 0.05


@pytest.mark.parametrize("name", [name for name in VARIANTS if "moe" not in name and name != "mixtral"])
def test_a_model_of_any_family_may_be_converted_while_attached(name):
    before, after, ids = tiny(name), tiny(name), random_ids(T + 9)
    with torch.no_grad():
        with mesa_lm.extrapolate(before, "mesa"):
            before.to(torch.bfloat16)
            found = decode(before, ids, T - 3)
        after.to(torch.bfloat16)
        with mesa_lm.extrapolate(after, "mesa"):
            torch.testing.assert_close(found, decode(after, ids, T - 3), atol=0, rtol=0)


def test_shared_chunks_follow_autocast():
    model = tiny_model()
    with torch.no_grad(), mesa_lm.extrapolate(model, "mesa", chunk_width=17) as handle:
        plain = [model(IDS[None]).logits]
        handle.reuse_chunks(2**20)
        model(IDS[None])
        for enabled in (True, False, True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                logits = model(IDS[None]).logits
            assert relative(logits, plain[0]) < (0.1 if enabled else 1e-5)


@pytest.mark.parametrize("method", OPTIONS)
def test_a_cache_goes_on_under_autocast(method):
    """A prompt in float32, the answer under autocast: the cache follows."""
    model = tiny_model()
    with torch.no_grad(), mesa_lm.extrapolate(model, method, **OPTIONS[method]):
        expected = decode(model, IDS, 90)[90:]
        cache, found = model(IDS[None, :90], use_cache=True).past_key_values, []
        with torch.autocast("cpu", torch.bfloat16):
            for token in IDS[90:]:
                found.append(model(token.view(1, 1), past_key_values=cache).logits[0])
    assert relative(torch.cat(found), expected) < 0.1
