"""Keys and values in the host's memory: the same results, one layer's on the device at a time."""

import pytest
import torch
from helpers import pad, random_ids
from stand_in_accelerator import OnDevice, StandIn, on_device, on_host
from tiny_models import tiny_model

import mesa_lm
from mesa_lm.attention.cache_layer import woven_layer
from mesa_lm.errors import MethodError, UsageError

METHODS = {"mesa": {"first_chunk": 3, "last_chunk": 7}, "star": {"block_size": 13, "query_length": 7}}


def run(model, name, batch, tokens, **options):
    """Logits of a batch and of tokens after it, and the cache."""
    with mesa_lm.extrapolate(model, name, **METHODS[name], **options), torch.no_grad():
        output, mask = model(**batch, use_cache=True), batch["attention_mask"]
        logits = [output.logits]
        for token in tokens:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            output = model(token, attention_mask=mask, past_key_values=output.past_key_values, use_cache=True)
            logits.append(output.logits)
    return [on_host(one) for one in logits], woven_layer(output.past_key_values).woven


@pytest.mark.parametrize("lengths", [(150, 97), (30, 38)], ids=["prompts", "from-within-T"])
@pytest.mark.parametrize("name", METHODS)
def test_results_are_the_same(name, lengths):
    batch = pad([random_ids(length, seed=length) for length in lengths], "left")
    tokens = [token.expand(2, 1).contiguous() for token in random_ids(23)]
    with StandIn():
        model = on_device(tiny_model())
        there = {key: OnDevice(value) for key, value in batch.items()}
        expected, _ = run(model, name, there, [OnDevice(token) for token in tokens])
        found, cache = run(model, name, there, [OnDevice(token) for token in tokens], cache="offloaded")
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    for buffers in (cache.keys, cache.values):
        assert all(not isinstance(buffer, OnDevice) for buffer in buffers.values())


def test_on_a_cpu_it_is_pointless(llama):
    with pytest.raises(UsageError, match="in the host's memory, where this model is already"):
        mesa_lm.extrapolate(llama, "mesa", cache="offloaded")
    with pytest.raises(UsageError, match="cache must be 'offloaded', or left out, found 'disk'"):
        mesa_lm.extrapolate(llama, "mesa", cache="disk")
    with pytest.raises(MethodError, match="cache=offloaded is for methods that cut prompts into chunks"):
        mesa_lm.extrapolate(llama, "rerope", cache="offloaded")
