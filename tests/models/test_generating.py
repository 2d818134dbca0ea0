"""A method is never taken from under a running generation unnoticed, and threads do not meet each other's passes."""

import threading

import pytest
import torch
from helpers import random_ids
from tiny_models import tiny_model
from transformers import StoppingCriteria

import mesa_lm
from mesa_lm.errors import ModelError

LONG = random_ids(90)[None]
SHORT = random_ids(30, seed=1)[None]
GREEDY = {"do_sample": False, "eos_token_id": None}
METHODS = ["mesa", "rerope", "ntk", "origin"]


class Streamer:
    """Tells when the first token is there, and waits to be told to go on."""

    def __init__(self):
        self.begun, self.go_on, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.tokens = 0

    def put(self, value):
        self.tokens += 1
        if self.tokens == 3:  # the prompt comes first
            self.begun.set()
            assert self.go_on.wait(60)

    def end(self):
        self.ended.set()


class Call(threading.Thread):
    """A call in a thread of its own, and how it ended."""

    def __init__(self, function, *args, **kwargs):
        super().__init__(daemon=True)
        self.call, self.answer, self.error = (function, args, kwargs), None, None

    def run(self):
        function, args, kwargs = self.call
        try:
            self.answer = function(*args, **kwargs)
        except mesa_lm.MesaError as error:
            self.error = error


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ids", [LONG, SHORT], ids=["beyond", "within"])
def test_leaving_the_block_stops_a_thread_that_streams(llama, method, ids):
    streamer = Streamer()
    with pytest.raises(ModelError, match=f"'{method}' was removed while another thread generated under it"):
        with mesa_lm.extrapolate(llama, method):
            thread = Call(llama.generate, ids, max_new_tokens=400, streamer=streamer, **GREEDY)
            thread.start()
            assert streamer.begun.wait(60)
            threading.Timer(0.1, streamer.go_on.set).start()
    thread.join(60)
    assert "while this thread generated; the answer is cut off" in str(thread.error)
    assert streamer.ended.is_set() and streamer.tokens <= 5
    assert "forward" not in llama.__dict__ and "generate" not in llama.__dict__


def test_an_error_inside_the_block_is_what_is_seen(llama):
    streamer = Streamer()
    with pytest.raises(RuntimeError, match="boom"), mesa_lm.extrapolate(llama, "mesa"):
        Call(llama.generate, LONG, max_new_tokens=400, streamer=streamer, **GREEDY).start()
        assert streamer.begun.wait(60)
        threading.Timer(0.1, streamer.go_on.set).start()
        raise RuntimeError("boom")


def test_a_thread_that_begins_after_the_block_is_refused(llama):
    streamer = Streamer()
    with mesa_lm.extrapolate(llama, "mesa"):
        late = Call(llama.generate, LONG, max_new_tokens=5, streamer=streamer, **GREEDY)
    late.start()
    late.join(60)
    assert "'mesa' was removed from this model before this call" in str(late.error)
    assert streamer.ended.is_set()


def test_a_finished_thread_has_the_answer(llama):
    with mesa_lm.extrapolate(llama, "mesa"):
        expected = llama.generate(LONG, max_new_tokens=5, **GREEDY)
        thread = Call(llama.generate, LONG, max_new_tokens=5, **GREEDY)
        thread.start()
        thread.join(60)
    assert torch.equal(thread.answer, expected)


@pytest.mark.parametrize("method", ["mesa", "rerope", "dynamic_ntk"])
def test_threads_generate_side_by_side(llama, method):
    """Some beyond the training length, some within it: none meets the attention of another's pass."""
    prompts = [LONG, SHORT, random_ids(70, seed=2)[None], SHORT[:, :9]] * 2
    with mesa_lm.extrapolate(llama, method):
        expected = [llama.generate(ids, max_new_tokens=17, **GREEDY) for ids in prompts]
        threads = [Call(llama.generate, ids, max_new_tokens=17, **GREEDY) for ids in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    assert all(torch.equal(thread.answer, answer) for thread, answer in zip(threads, expected, strict=True))
    assert llama.config._attn_implementation == "sdpa" and "forward" not in llama.model.rotary_emb.__dict__


def test_a_generation_does_not_remove_its_own_method(llama):
    class Removing(StoppingCriteria):
        def __call__(self, *args, **kwargs):
            handle.remove()

    handle = mesa_lm.extrapolate(llama, "mesa")
    with pytest.raises(ModelError, match="cannot be removed by something that its model's own generate"):
        llama.generate(LONG, max_new_tokens=5, stopping_criteria=[Removing()], **GREEDY)
    assert handle.is_attached
    handle.remove()
    assert not handle.is_attached


def test_continuous_batching_is_refused():
    model = tiny_model()
    with mesa_lm.extrapolate(model, "mesa"):
        with pytest.raises(ModelError, match=r"continuous batching \(generate_batch\) is not available under method"):
            model.generate_batch([LONG[0].tolist()])
    assert "init_continuous_batching" not in model.__dict__
