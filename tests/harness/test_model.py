import json
import logging
import re

import pytest
import torch
import transformers
from lm_eval.models.huggingface import HFLM
from word_model import TRAIN_LENGTH, WORDS, pairs, requests, text

from mesa_lm.errors import UsageError
from mesa_lm.harness import model as harness
from mesa_lm.harness import progress_bar, untruncated
from mesa_lm.harness.model import MesaHFLM

# float32; rows of a batch take part in matrix products of other shapes, which round differently.
TOLERANCE = 1e-4


def prompts(lengths, max_gen_toks=11):
    return [(text(length, length), {"max_gen_toks": max_gen_toks, "until": ["w7 "]}) for length in lengths]


def answers(lm, lengths, reverse=False):
    """All three kinds of answers, in the order of `lengths` even if asked for in reverse."""
    step = -1 if reverse else 1
    documents = [(text(length, length),) for length in lengths]
    scored = lm.loglikelihood(requests("loglikelihood", *pairs(lengths)[::step]))[::step]
    rolling = lm.loglikelihood_rolling(requests("loglikelihood_rolling", *documents[::step]))[::step]
    generated = lm.generate_until(requests("generate_until", *prompts(lengths)[::step]))[::step]
    return scored, rolling, generated


FITTING = (1, 31, 31, 62, 79, 85)
BEYOND = (5, TRAIN_LENGTH, 131, 211, 211, 397)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_origin_gives_the_results_of_hf_to_the_last_bit(model_path, batch_size, dtype):
    options = {"batch_size": batch_size, "device": "cpu", "dtype": dtype}
    ours = MesaHFLM(pretrained=model_path, method="origin", **options)
    assert answers(ours, FITTING) == answers(HFLM(pretrained=model_path, **options), FITTING)


def test_origin_gives_the_results_of_hf_beyond_the_training_length_if_hf_is_told_not_to_truncate(model_path):
    ours = MesaHFLM(pretrained=model_path, method="origin", device="cpu", batch_size=3)
    stock = HFLM(pretrained=model_path, device="cpu", batch_size=3, max_length=10_000)
    assert answers(ours, BEYOND) == answers(stock, BEYOND)


def test_requests_with_a_common_prefix_share_a_forward_pass(model_path, monkeypatch):
    lm = MesaHFLM(pretrained=model_path, device="cpu", batch_size=2)
    choices = requests("loglikelihood", *[(text(211, 3), f" {word}") for word in WORDS[:5]])
    apart = MesaHFLM(pretrained=model_path, device="cpu", logits_cache=False).loglikelihood(choices)
    calls = spy_on_forward(lm, monkeypatch)
    together = lm.loglikelihood(choices)
    assert len(calls) == 1
    assert [score for score, _ in together] == pytest.approx([score for score, _ in apart], abs=TOLERANCE)


@pytest.mark.parametrize("options", [{"batch_size": 4}, {"batch_size": "auto"}])
def test_answers_depend_neither_on_batch_size_nor_on_order(model_path, options):
    lm = MesaHFLM(pretrained=model_path, device="cpu", batch_size=1)
    scored, rolling, generated = answers(lm, BEYOND)
    other = MesaHFLM(pretrained=model_path, device="cpu", **options)
    other_scored, other_rolling, other_generated = answers(other, BEYOND, reverse=True)
    assert [score for score, _ in other_scored] == pytest.approx([score for score, _ in scored], abs=TOLERANCE)
    assert [greedy for _, greedy in other_scored] == [greedy for _, greedy in scored]
    assert other_rolling == pytest.approx(rolling, rel=TOLERANCE)
    assert other_generated == generated
    assert other.batch_size == options["batch_size"]


def test_answers_are_those_of_the_extrapolated_model(model_path):
    lm = MesaHFLM(pretrained=model_path, device="cpu", batch_size=2)
    context, continuation = pairs([397])[0]
    tokens = torch.tensor([lm.tokenizer.encode(context + continuation)])
    length = len(lm.tokenizer.encode(continuation))
    with torch.no_grad():
        # The last token is predicted, never read; Mesa's chunks depend on how many tokens are read.
        log_probs = lm.model(tokens[:, :-1]).logits[0, -length:].log_softmax(-1)
    expected = log_probs.gather(1, tokens[0, -length:, None]).sum()
    (score, _), _ = lm.loglikelihood(requests("loglikelihood", (context, continuation), ("w1", " w2")))
    assert score == pytest.approx(float(expected), abs=TOLERANCE)
    (origin, _) = MesaHFLM(pretrained=model_path, device="cpu", method="origin").loglikelihood(
        requests("loglikelihood", (context, continuation))
    )[0]
    assert abs(origin - score) > 0.01


def test_a_row_ends_at_the_end_token_whatever_the_others_do(model_path):
    lm = MesaHFLM(pretrained=model_path, device="cpu", batch_size=2)
    lm.model.generation_config.eos_token_id = None  # as in many base models
    asked = requests("generate_until", *[(prompt, {"max_gen_toks": 17}) for prompt, _ in prompts([131, 211, 62])])
    free = lm.generate_until(asked)
    # Every answer's third word becomes the end token.
    for index, answer in enumerate(free):
        end = answer.split()[2]
        lm.tokenizer.eos_token = end
        single = lm.generate_until([asked[index]])
        assert lm.generate_until(asked)[index] == single[0]


def spy_on_forward(lm, monkeypatch):
    calls = []
    forward = lm.model.forward

    def spy(*args, **kwargs):
        calls.append(kwargs)
        return forward(*args, **kwargs)

    monkeypatch.setattr(lm.model, "forward", spy)
    return calls


def test_only_the_scored_positions_have_logits(model_path, monkeypatch):
    lm = MesaHFLM(pretrained=model_path, device="cpu", batch_size=3)
    calls = spy_on_forward(lm, monkeypatch)
    asked = pairs([131, 62, 211])
    lm.loglikelihood(requests("loglikelihood", *asked))
    assert [call["logits_to_keep"] for call in calls] == [max(len(words.split()) for _, words in asked)]
    assert calls[0]["attention_mask"].sum(-1).tolist() == [
        len(f"{a}{b}".split()) - 1 for a, b in sorted_by_length(asked)
    ]


def sorted_by_length(asked):
    return sorted(asked, key=lambda pair: -len("".join(pair).split()))


def test_auto_batch_size_tries_the_longest_request_and_no_longer_one(model_path, monkeypatch):
    monkeypatch.setattr(untruncated, "CPU_BATCH_TOKENS", 1000)
    lm = MesaHFLM(pretrained=model_path, device="cpu", batch_size="auto")
    calls = spy_on_forward(lm, monkeypatch)
    lm.loglikelihood(requests("loglikelihood", *pairs([211, 131, 62, 31, 5])))
    shapes = [tuple(call["input_ids"].shape) for call in calls]
    assert shapes == [(4, 214), (4, 214), (1, 6)]


def test_max_length_cuts_are_counted(model_path, caplog):
    lm = MesaHFLM(pretrained=model_path, device="cpu", max_length=131)
    with caplog.at_level(logging.WARNING):
        answers(lm, (62, 211, 397))
    assert lm.truncated_samples == 2 * 3
    assert sum("2 samples did not reach the model whole: max_length=131" in line for line in caplog.messages) == 3


def test_nothing_is_cut_by_default(model_path, caplog):
    lm = MesaHFLM(pretrained=model_path, device="cpu", batch_size=2)
    with caplog.at_level(logging.WARNING, logger="lm_eval"):
        answers(lm, BEYOND)
    assert lm.truncated_samples == 0
    assert caplog.messages == []


def test_prompts_are_encoded_each_by_itself(model_path):
    lm = MesaHFLM(pretrained=model_path, device="cpu")
    ids, mask = lm.tok_batch_encode(["<s> w0 w1", "w2 w3 w4 w5 w6"], left_truncate_len=4)
    assert ids.tolist() == [[lm.tokenizer.pad_token_id, 0, 3, 4], [6, 7, 8, 9]]
    assert mask.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1]]


def test_saved_results_name_the_method_and_every_parameter(model_path):
    lm = MesaHFLM(pretrained=model_path, device="cpu", first_chunk=7)
    info = lm.get_model_info()["mesa_lm"]
    assert json.loads(json.dumps(info)) == info
    assert info["method"] == "mesa"
    assert info["parameters"]["first_chunk"] == 7
    assert info["parameters"]["last_chunk"] == TRAIN_LENGTH // 4
    assert info["train_length"] == TRAIN_LENGTH
    assert info["pretrained"] == model_path
    assert info["truncated_samples"] == 0
    assert info["version"]
    origin = MesaHFLM(pretrained=model_path, device="cpu", method="origin").get_model_info()["mesa_lm"]
    assert (origin["method"], origin["parameters"], origin["train_length"]) == ("origin", {}, TRAIN_LENGTH)


def test_a_loaded_model_can_be_given(model_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(model_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path)
    lm = MesaHFLM(pretrained=model, tokenizer=tokenizer)
    named = MesaHFLM(pretrained=model_path, device="cpu")
    assert answers(lm, [131]) == answers(named, [131])


def test_without_pretrained_the_demo_model_runs_and_says_so_once(model_path, monkeypatch, caplog):
    monkeypatch.setattr(harness, "MODEL_PATH", model_path)
    with caplog.at_level(logging.INFO, logger="lm_eval"):
        lm = MesaHFLM(device="cpu")
    assert lm.pretrained == model_path
    assert sum("demo model" in line for line in caplog.messages) == 1


def test_lm_eval_finds_the_model():
    from lm_eval.api.registry import get_model

    assert get_model("mesa-hf") is MesaHFLM


def test_truncated_samples_are_added_up_over_processes(model_path, monkeypatch):
    lm = MesaHFLM(pretrained=model_path, device="cpu", max_length=31)
    monkeypatch.setattr(lm, "all_gather", lambda tensor: torch.cat([tensor, tensor + 5]))
    lm.loglikelihood(requests("loglikelihood", *pairs([62])))
    assert lm.truncated_samples == 7


def test_peft_models_are_extrapolated(model_path, tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(11)
    base = transformers.AutoModelForCausalLM.from_pretrained(model_path)
    adapted = peft.get_peft_model(
        base, peft.LoraConfig(r=3, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
    )
    adapted.save_pretrained(tmp_path)
    lm = MesaHFLM(pretrained=model_path, peft=str(tmp_path), device="cpu", batch_size=2)
    merged = MesaHFLM(
        pretrained=adapted.merge_and_unload(),
        tokenizer=transformers.AutoTokenizer.from_pretrained(model_path),
    )
    ours, theirs = answers(lm, [131, 211]), answers(merged, [131, 211])
    assert [score for score, _ in ours[0]] == pytest.approx([score for score, _ in theirs[0]], abs=TOLERANCE)
    assert ours[2] == theirs[2]


def test_requests_share_chunks_unless_told_otherwise(model_path):
    document = text(300, 1)
    asked = requests("loglikelihood", *((f"{document} {text(n, n)}", " w1 w2") for n in (3, 5, 9)))
    options = {"pretrained": model_path, "batch_size": 1, "first_chunk": 3, "chunk_width": 31, "last_chunk": 13}
    sharing, apart = MesaHFLM(**options), MesaHFLM(**options, chunk_store_gib=0)
    assert apart.handle.store is None
    shared, alone = sharing.loglikelihood(asked), apart.loglikelihood(asked)
    assert sharing.handle.store.hits > 0
    assert [score for score, _ in shared] == pytest.approx([score for score, _ in alone], abs=TOLERANCE)


def test_progress_moves_within_a_long_prompt(model_path, monkeypatch, capsys):
    monkeypatch.setattr(progress_bar, "REDRAW_S", 0.0)
    lm = MesaHFLM(pretrained=model_path, device="cpu", batch_size=1)
    lm.loglikelihood(requests("loglikelihood", (text(397, 3), " w1 w2")))
    shown = [int(run) for run in re.findall(r"tokens=(\d+)/399", capsys.readouterr().err)]
    assert shown == sorted(shown) and shown[0] < 100 and shown[-1] == 398


def test_a_token_that_lm_eval_would_write_is_warned_about(model_path, caplog):
    MesaHFLM(pretrained=model_path, device="cpu", token="hf_secret")
    assert "HF_TOKEN" in caplog.text and "hf_secret" not in caplog.text


@pytest.mark.parametrize("method", ["mesa", "rerope", "origin"])
def test_an_empty_continuation_is_refused(model_path, method):
    lm = MesaHFLM(pretrained=model_path, device="cpu", method=method)
    with pytest.raises(UsageError, match="a continuation to be scored has no tokens"):
        lm.loglikelihood(requests("loglikelihood", (text(211, 3), " w1"), (text(211, 3), "")))
    assert lm.loglikelihood([]) == []
