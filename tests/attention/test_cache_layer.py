"""Caches that a caller makes: filled by every method, or refused by name; never another method's."""

import copy

import pytest
import torch
from family_pairs import OPTIONS
from helpers import decode, pad, random_ids, together_and_alone
from tiny_models import tiny_model
from transformers.cache_utils import DynamicCache, DynamicLayer, QuantizedLayer, StaticCache
from zoo import VARIANTS, T, tiny

import mesa_lm
from mesa_lm.errors import ModelError, UsageError
from mesa_lm.models.support import family_rows

IDS = random_ids(100)[None]
CACHES = {
    "dynamic": lambda config: DynamicCache(config=config),
    "dynamic, no config": lambda config: DynamicCache(),
    "static": lambda config: StaticCache(config=config, max_cache_len=200),
}
METHODS = [name for name in OPTIONS if name != "mesa"] + ["mesa", "origin"]


def decode_into(model, ids, prompt, cache):
    """Logits of a prompt and of the tokens after it, by the ordinary loop: what is returned as cache is ignored."""
    logits = [model(input_ids=ids[:, :prompt], past_key_values=cache, use_cache=True).logits[0]]
    for token in ids[0, prompt:]:
        logits.append(model(input_ids=token.view(1, 1), past_key_values=cache, use_cache=True).logits[0])
    return torch.cat(logits)


@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("prompt", [90, 37], ids=["beyond", "crossing"])
@pytest.mark.parametrize("method", METHODS)
def test_the_callers_cache_is_filled(method, prompt, kind):
    model, options = tiny_model(), OPTIONS.get(method, {})
    with torch.no_grad(), mesa_lm.extrapolate(model, method, **options):
        expected = decode(model, IDS[0, :96], prompt)
        cache = CACHES[kind](model.config)
        logits = decode_into(model, IDS[:, :96], prompt, cache)
        assert int(cache.get_seq_length()) == 96
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_callers_cache_is_filled_in_every_family(name):
    model, ids = tiny(name), random_ids(T + 13)[None]
    with torch.no_grad(), mesa_lm.extrapolate(model, "rerope", window=5):
        expected = decode(model, ids[0], T - 3)
        torch.testing.assert_close(
            decode_into(model, ids, T - 3, DynamicCache(config=model.config)), expected, atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("name", VARIANTS)
def test_a_padded_cache_is_taken_over_where_its_keys_stand(name):
    """Without position_ids transformers counts padded columns, so that rows begin at different positions."""
    model = tiny(name)
    rows = [random_ids(3), random_ids(T - 12, 1)]
    with torch.no_grad(), mesa_lm.extrapolate(model, "rerope", window=T - 12, log_n=False):
        for batched, alone in together_and_alone(model, rows, "left", random_ids(4, 99)):
            torch.testing.assert_close(batched, alone, atol=2e-4, rtol=0)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
@pytest.mark.parametrize("kind", CACHES)
def test_generation_takes_a_cache(llama, kind, options):
    def generate(**given):
        torch.manual_seed(0)
        return llama.generate(IDS, max_new_tokens=7, min_new_tokens=7, eos_token_id=None, **options, **given)

    with mesa_lm.extrapolate(llama, "mesa"):
        assert torch.equal(generate(past_key_values=CACHES[kind](llama.config)), generate())
        assert torch.equal(generate(cache_implementation="static"), generate())


@pytest.mark.parametrize("name", ["llama", "llama-dynamic", "gemma3_text", "qwen2-window", "falcon"])
@pytest.mark.parametrize("method", ["mesa", "rerope", "ntk"])
def test_a_static_cache_crosses_the_training_length(name, method):
    """There generate() makes a mask of four dimensions, or one for each kind of layer."""
    model, rows = tiny(name), pad([random_ids(T - 3), random_ids(T - 8, seed=1)], "left")
    options = {"max_new_tokens": 9, "eos_token_id": None, "do_sample": False}
    with mesa_lm.extrapolate(model, method):
        expected = model.generate(**rows, **options)
        assert torch.equal(model.generate(**rows, **options, cache_implementation="static"), expected)


def test_a_prefilled_cache_serves_several_questions(llama):
    """As transformers' guide has it: one prefill, and a copy of its cache for every question."""
    with torch.no_grad(), mesa_lm.extrapolate(llama, "rerope", window=5):
        prefix = DynamicCache(config=llama.config)
        llama(IDS[:, :70], past_key_values=prefix)
        for end in (80, 95):
            cache = copy.deepcopy(prefix)
            answer = llama.generate(IDS[:, :end], past_key_values=cache, max_new_tokens=5, eos_token_id=None)
            assert torch.equal(answer, llama.generate(IDS[:, :end], max_new_tokens=5, eos_token_id=None))
        assert prefix.get_seq_length() == 70


def test_a_cache_filled_before_attaching_goes_on_within_the_training_length(llama):
    with torch.no_grad():
        cache = DynamicCache(config=llama.config)
        llama(IDS[:, :37], past_key_values=cache)
        with mesa_lm.extrapolate(llama, "mesa"):
            logits = llama(IDS[:, 37:50], past_key_values=cache).logits
            torch.testing.assert_close(logits, llama(IDS[:, 37:50], past_key_values=before(llama, 37)).logits)
            with pytest.raises(ModelError, match="holds 60 tokens that were not run under method 'mesa'"):
                llama(IDS[:, :1], past_key_values=before(tiny_model(), 60))


def before(model, length):
    """A cache that the model, whatever is attached, has filled."""
    cache = DynamicCache(config=model.config)
    model(IDS[:, :length], past_key_values=cache)
    return cache


def test_a_cache_may_be_reset_and_filled_again(llama):
    with torch.no_grad(), mesa_lm.extrapolate(llama, "mesa"):
        cache = DynamicCache(config=llama.config)
        decode_into(llama, IDS, 90, cache)
        cache.reset()
        assert cache.get_seq_length() == 0
        other = IDS.expand(2, -1)
        again = llama(other, past_key_values=cache).logits
        torch.testing.assert_close(again, llama(other).logits, atol=1e-5, rtol=0)


PAIRS = [
    (("mesa", {}), ("rerope", {}), "under method 'mesa', and now 'rerope' runs"),
    (("mesa", {}), ("mesa", {"first_chunk": 3}), r"with other parameters \(first_chunk=2, now 3\)"),
    (("mesa", {}), ("ntk", {}), "under method 'mesa', and now 'ntk' runs"),
    (("mesa", {}), ("origin", {}), "under method 'mesa', and now 'origin' runs"),
    (("ntk", {}), ("ntk", {"factor": 3.0}), r"with other parameters \(factor=8.0, now 3.0\)"),
    (("ntk", {}), ("mesa", {}), "under method 'ntk', and now 'mesa' runs"),
    (("yarn", {}), ("origin", {}), "under method 'yarn', and now 'origin' runs"),
    (("origin", {}), ("linear", {}), "without method 'linear', at other frequencies"),
]


@pytest.mark.parametrize(("first", "second", "message"), PAIRS, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("given", [True, False], ids=["given", "returned"])
def test_a_cache_of_another_method_is_refused(llama, first, second, message, given):
    with torch.no_grad():
        with mesa_lm.extrapolate(llama, first[0], **first[1]):
            cache = DynamicCache(config=llama.config) if given else None
            returned = llama(IDS, past_key_values=cache, use_cache=True).past_key_values
        with mesa_lm.extrapolate(llama, second[0], **second[1]):
            with pytest.raises(ModelError, match=message):
                llama(IDS[:, :1], past_key_values=returned)
        with mesa_lm.extrapolate(llama, first[0], **first[1]):
            llama(IDS[:, :1], past_key_values=returned)


@pytest.mark.parametrize("copied", [lambda cache: cache, copy.deepcopy], ids=["itself", "a copy"])
@pytest.mark.parametrize("kind", CACHES)
@pytest.mark.parametrize("method", ["mesa", "rerope", "dynamic_ntk", "ntk", "linear", "yarn"])
def test_the_untouched_model_is_not_given_a_filled_cache(llama, method, kind, copied):
    with torch.no_grad():
        with mesa_lm.extrapolate(llama, method):
            expected = decode(llama, IDS[0, :95], 90)[-5:]
            cache = CACHES[kind](llama.config)
            llama(IDS[:, :90], past_key_values=cache)
        cache = copied(cache)
        with pytest.raises(UsageError, match=f"filled under method '{method}' and is of use to it alone"):
            llama(IDS[:, 90:91], past_key_values=cache)
        with mesa_lm.extrapolate(llama, method):
            logits = [llama(token.view(1, 1), past_key_values=cache).logits[0] for token in IDS[0, 90:95]]
        torch.testing.assert_close(torch.cat(logits), expected, atol=1e-4, rtol=0)


class Compressed(DynamicLayer):
    """A layer that drops keys."""


class Quantized(QuantizedLayer):
    """A layer that keeps fewer bits, as quanto's and HQQ's do."""

    def _quantize(self, tensor, axis):
        return tensor

    def _dequantize(self, tensor):
        return tensor


class Own(DynamicCache):
    """A cache with an idea of its own."""


def with_layer(layer):
    def make(config):
        cache = DynamicCache(config=config)
        cache.layers[1] = layer()
        return cache

    return make


def offloaded(config):
    cache = DynamicCache(config=config)
    cache.offloading = True  # its constructor wants an accelerator
    return cache


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda config: Own(config=config), "cannot fill a Own"),
        (with_layer(Compressed), "cannot fill a DynamicCache with layers of type Compressed"),
        (with_layer(Quantized), "with layers of type Quantized where"),
        (offloaded, "cannot fill an offloaded cache"),
    ],
    ids=["subclass", "compressed", "quantised", "offloaded"],
)
def test_caches_of_other_kinds_are_refused_by_name(llama, make, message):
    with torch.no_grad(), mesa_lm.extrapolate(llama, "mesa"):
        with pytest.raises(ModelError, match=message):
            llama(IDS, past_key_values=make(llama.config))


def test_every_family_is_among_those_whose_cache_is_tested():
    """The zoo has every supported type but remote code, whose models have caches of their own."""
    tested = {tiny(name).config.model_type for name in VARIANTS}
    assert {row.model_type for row in family_rows() if row.position} - tested == {"baichuan"}
