"""Continuations of one long context: the scores of requests of their own, from one prefill."""

import pytest
import torch
from word_model import requests

from mesa_lm.errors import UsageError
from mesa_lm.harness import scoring
from mesa_lm.harness.model import MesaHFLM
from mesa_lm.harness.shared_context import with_shared_context
from mesa_lm.methods.registry import make_method
from mesa_lm.models.handle import Handle

TRAIN_LENGTH = 512
TOLERANCE = 1e-5  # relative; an appended piece takes part in matrix products of other shapes, which round differently
DOCUMENT = " ".join(f"The grass number {i} is green and the sky above it is blue." for i in range(80))
CHOICES = [" yes", " no", " The grass is green", " it is blue and green and blue", " yes"]

SHARING = [
    "rerope",
    "self_extend",
    "lm_infinite",
    "streaming_llm",
    "dual_chunk",
    "linear",
    "ntk",
    "yarn",
    "stair,extrapolated_width=50",
    "leaky_rerope,scaling_factor=4",
]
OF_THEIR_OWN = [
    "mesa",
    "stair",
    "leaky_rerope",
    "dynamic_ntk",
    "dual_chunk,mscale=True",
    "dual_chunk,merge=bfloat16",
    "streaming_llm,evict=every_turn",
    "lm_infinite,distance_limit=500,n_local=100",
    "origin",
]


def model(spec, **options):
    name, *given = spec.split(",")
    parameters = dict(item.split("=") for item in given)
    typed = {key: int(value) if value.isdecimal() else value == "True" or value for key, value in parameters.items()}
    return MesaHFLM(method=name, **typed, **options)


def tokens_run(lm, monkeypatch):
    """Count the tokens that go through the model's first layer."""
    seen = []
    monkeypatch.setattr(
        lm.model.get_input_embeddings(), "forward", counted(lm.model.get_input_embeddings().forward, seen)
    )
    return seen


def counted(forward, seen):
    def run(ids):
        seen.append(ids.numel())
        return forward(ids)

    return run


@pytest.mark.parametrize("spec", SHARING + OF_THEIR_OWN)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_are_those_of_requests_of_their_own(spec, batch_size, monkeypatch):
    lm = model(spec, batch_size=batch_size)
    pairs = [(text, choice) for choice in CHOICES for text in (DOCUMENT, DOCUMENT[700:], "The grass is")]
    together = lm.loglikelihood(requests("loglikelihood", *pairs))
    lm.share_beyond = None
    alone = lm.loglikelihood(requests("loglikelihood", *pairs))
    assert [score for score, _ in together] == pytest.approx([score for score, _ in alone], rel=TOLERANCE)
    assert [greedy for _, greedy in together] == [greedy for _, greedy in alone]


@pytest.mark.parametrize(("spec", "shares"), [(s, True) for s in SHARING] + [(s, False) for s in OF_THEIR_OWN])
def test_a_context_goes_through_the_model_once_where_the_method_allows_it(spec, shares, monkeypatch):
    lm = model(spec, batch_size=1, chunk_store_gib=0)
    seen = tokens_run(lm, monkeypatch)
    length = len(lm.tok_encode(DOCUMENT))
    assert length > 2 * TRAIN_LENGTH
    lm.loglikelihood(requests("loglikelihood", *((DOCUMENT, choice) for choice in CHOICES)))
    spent = sum(seen)
    assert (spent < 1.1 * length) == shares
    assert shares == (lm.share_beyond == TRAIN_LENGTH)


def test_short_contexts_and_those_that_max_length_cuts_share_nothing(monkeypatch):
    context = " ".join(DOCUMENT.split()[:50])
    lm = model("rerope", batch_size=1)
    seen = tokens_run(lm, monkeypatch)
    lm.loglikelihood(requests("loglikelihood", *((context, choice) for choice in CHOICES)))
    assert min(seen) >= len(lm.tok_encode(context)) and len(seen) == len(set(CHOICES))
    cut = model("rerope", batch_size=1, max_length=600)
    seen = tokens_run(cut, monkeypatch)
    cut.loglikelihood(requests("loglikelihood", *((DOCUMENT, choice) for choice in CHOICES)))
    assert cut.truncated_samples == len(CHOICES)
    assert min(seen) == 600


def test_nothing_is_shared_where_several_processes_must_make_equal_calls(monkeypatch):
    lm = model("rerope", batch_size=1)
    monkeypatch.setattr(lm, "_world_size", 2)
    monkeypatch.setattr(lm, "all_gather", lambda tensor: tensor)
    seen = tokens_run(lm, monkeypatch)
    lm.loglikelihood(requests("loglikelihood", *((DOCUMENT, choice) for choice in CHOICES)))
    assert len(seen) > 0 and sum(seen) >= len(set(CHOICES)) * len(lm.tok_encode(DOCUMENT))


def test_a_method_that_is_switched_to_decides(monkeypatch):
    lm = model("rerope")
    lm.switch(make_method("mesa"))
    assert lm.share_beyond is None
    lm.switch(make_method("ntk"))
    assert lm.share_beyond == TRAIN_LENGTH


def test_origin_shares_nothing_whatever_its_cache_would_serve(monkeypatch):
    """Under it `hf`'s own calls are made, though no token depends on what follows it."""
    monkeypatch.setattr(Handle, "keeps_beginnings", True)
    lm = model("origin")
    assert not lm.method.depends_on_length and lm.share_beyond is None
    lm.switch(make_method("rerope"))
    assert lm.share_beyond == TRAIN_LENGTH


def test_with_shared_context_orders_by_length():
    contexts = [[1, 2, 3], [4, 5, 6, 7], [1, 2, 3], [9, 9], [4, 5, 6, 7], [9, 9], [8, 8, 8]]
    assert with_shared_context(contexts, 2) == [[1, 4], [0, 2]]


def test_a_cache_whose_beginning_changed_cannot_be_cropped():
    lm = model("rerope")
    row = torch.tensor([lm.tok_encode(DOCUMENT)[:700]])
    with torch.no_grad():
        cache = lm.model(row, use_cache=True).past_key_values
        cache.crop(-100)
        again = lm.model(row[:, 600:], past_key_values=cache).logits[0, -1]
        whole = lm.model(row).logits[0, -1]
    torch.testing.assert_close(again, whole, atol=1e-4, rtol=0)
    lm.switch(make_method("mesa"))
    with torch.no_grad():
        woven = lm.model(row, use_cache=True).past_key_values
    with pytest.raises(UsageError, match="cannot be cropped"):
        woven.crop(-1)


def test_where_a_context_does_not_fit_its_requests_are_answered_alone(monkeypatch):
    lm = model("rerope", batch_size=1)
    pairs = requests("loglikelihood", *((DOCUMENT, choice) for choice in CHOICES))
    expected = lm.loglikelihood(pairs)

    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        yield

    monkeypatch.setattr(scoring, "continuation_logits", full)
    assert [score for score, _ in lm.loglikelihood(pairs)] == pytest.approx([s for s, _ in expected], rel=TOLERANCE)

    def broken(*arguments):
        raise RuntimeError("something else")
        yield

    monkeypatch.setattr(scoring, "continuation_logits", broken)
    with pytest.raises(RuntimeError, match="something else"):
        lm.loglikelihood(pairs)
