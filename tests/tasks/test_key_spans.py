"""LongPPL: which tokens are key under an evaluator, and their perplexity as a metric of long_ppl."""

import json
import math
from itertools import pairwise

import pytest
import torch
from command_line import run
from hypothesis import given
from hypothesis import strategies as st
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from mesa_lm.demo import MODEL_PATH
from mesa_lm.errors import UsageError
from mesa_lm.harness.model import MesaHFLM
from mesa_lm.harness.offsets import merged, within
from mesa_lm.studies.key_spans import contrast
from mesa_lm.tasks.long_ppl import key_spans, samples
from mesa_lm.tasks.passkey_long.texts import DESCRIPTION, FILLER, NEEDLE, QUESTION

TRUNC_LEN, STRIDE = 60, 17


def recalled(key):
    """A text whose last words are known from its beginning alone, and more text for the tail."""
    middle = " ".join([FILLER] * 5)
    said = f"{DESCRIPTION} {NEEDLE.format(key=key)} {middle}\n\n{QUESTION} The pass key is {key}."
    return " ".join([said, *[middle] * 3])


TEXTS = [recalled(73912), recalled(4806), recalled(561027)]


@pytest.fixture(scope="module")
def lm():
    return MesaHFLM(method="origin")


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, "too short"]))
    return str(path)


@pytest.fixture
def spans_file(tmp_path, data):
    out = tmp_path / "spans.json"
    done = run(
        "key-spans", "--data", data, "--num-samples", 3, "--trunc-len", TRUNC_LEN, "--stride", STRIDE, "--out", out
    )
    assert done.exit_code == 0, done.stderr
    assert "key spans in 3 documents" in done.stdout
    return out


def losses_given(model, tokens, i, start):
    """The loss of token i given those from `start` on, by transformers alone."""
    ids = torch.tensor([tokens[start : i + 1]])
    with torch.no_grad():
        return float(cross_entropy(model(ids[:, :-1]).logits[0, -1:], ids[0, -1:]))


def test_a_token_is_key_by_the_definition(lm):
    model = AutoModelForCausalLM.from_pretrained(MODEL_PATH).eval()
    tokens = lm.tok_encode(TEXTS[0])[:230]
    expected = []
    for i in range(TRUNC_LEN, len(tokens)):
        start = (i - TRUNC_LEN) // STRIDE * STRIDE
        whole, short = losses_given(model, tokens, i, 0), losses_given(model, tokens, i, start)
        expected += [i] if short - whole > 2 and whole < 2 else []
    assert contrast.key_tokens(lm, tokens, TRUNC_LEN, STRIDE) == expected
    assert expected


def test_the_spans_are_the_key_that_was_said_long_before(spans_file):
    found = key_spans.read_key_spans(str(spans_file))
    assert (found.evaluator, found.trunc_len, found.stride) == ("demo", TRUNC_LEN, STRIDE)
    for i, (document, text) in enumerate(zip(found.documents, TEXTS, strict=True)):
        assert (document.place, document.characters) == (i, len(text))
        answer = text.index("pass key is", text.index(QUESTION))
        said = "".join(text[start:end] for start, end in document.spans)
        assert any(answer < start < answer + 25 for start, _ in document.spans)
        assert sum(char.isdigit() for char in said) >= 3


def test_key_ppl_is_the_perplexity_of_the_tokens_within_the_spans(spans_file, data):
    tokenizer = AutoTokenizer.from_pretrained(MODEL_PATH)
    model = AutoModelForCausalLM.from_pretrained(MODEL_PATH).eval()
    metadata = {"lengths": [200, 230], "num_samples": 3, "data": data, "key_spans": str(spans_file)}
    found = simple_evaluate("mesa-hf", {"method": "origin"}, ["long_ppl"], metadata=metadata, bootstrap_iters=20)
    file = key_spans.read_key_spans(str(spans_file))
    for length in (200, 230):
        means = []
        for sample, document in zip(found["samples"][f"long_ppl_{length}"], file.documents, strict=True):
            text = sample["doc"]["text"]
            encoded = tokenizer(text, return_offsets_mapping=True)
            ids = torch.tensor([encoded["input_ids"]])
            with torch.no_grad():
                losses = cross_entropy(model(ids[:, :-1]).logits[0], ids[0, 1:], reduction="none")
            inside = [
                float(losses[i - 1])
                for i, (start, end) in enumerate(encoded["offset_mapping"])
                if start < end and any(low <= start and end <= high for low, high in document.spans)
            ]
            assert inside
            means.append(sum(inside) / len(inside))
        row = found["results"][f"long_ppl_{length}"]
        assert row["key_ppl,none"] == pytest.approx(math.exp(sum(means) / 3), rel=1e-4)
        assert row["key_ppl_stderr,none"] > 0
        assert found["higher_is_better"][f"long_ppl_{length}"]["key_ppl"] is False
        noted = found["configs"][f"long_ppl_{length}"]["metadata"]
        assert (noted["evaluator"], noted["key_spans_sha256"]) == ("demo", file.digest)


def test_without_key_tokens_there_is_no_key_ppl(spans_file, data, caplog):
    metadata = {"lengths": [50], "num_samples": 2, "data": data, "key_spans": str(spans_file)}
    found = simple_evaluate("mesa-hf", {"method": "origin"}, ["long_ppl_50"], metadata=metadata, bootstrap_iters=0)
    assert "no token of the first 50 is key" in caplog.text
    assert "key_ppl,none" not in found["results"]["long_ppl_50"]
    assert "nll,none" in found["results"]["long_ppl_50"]


def options(**given):
    return {"length": 200, "num_samples": 2, "pretrained": str(MODEL_PATH), **given}


def test_spans_of_other_text_are_refused(spans_file, data, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"text": TEXTS[0]}) + "\n" + json.dumps({"text": TEXTS[2]}) + "\n")
    with pytest.raises(UsageError, match="^long_ppl: key_spans are of a text with the SHA-256 .*mesa-lm key-spans"):
        samples.long_ppl_dataset(**options(data=str(other), key_spans=str(spans_file)))
    content = json.loads(spans_file.read_text())
    content["documents"][1]["characters"] = 99
    spans_file.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="cover the first 99 characters of document 1, and its first 200 tokens are"):
        samples.long_ppl_dataset(**options(data=data, key_spans=str(spans_file)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "cannot be read"),
        ("[]", "must be a file that `mesa-lm key-spans`"),
    ],
)
def test_files_of_another_kind_are_refused_before_a_model_is_loaded(tmp_path, content, message):
    path = tmp_path / "spans.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        samples.check_options({"key_spans": str(path)})
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="did you mean 'key_spans'"):
        samples.check_options({"key_span": str(path)})


def test_models_that_do_not_score_spans_are_refused(spans_file, data):
    metadata = {"lengths": [200], "num_samples": 2, "data": data, "key_spans": str(spans_file)}
    model = HFLM(pretrained=str(MODEL_PATH), logits_cache=False, device="cpu")
    with pytest.raises(UsageError, match="span_loglikelihood, which --model mesa-hf answers and HFLM does not"):
        simple_evaluate(model, tasks=["long_ppl_200"], metadata=metadata, bootstrap_iters=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--length", 50, "--trunc-len", 60), "--length must be above --trunc-len, 60; found 50"),
        (("--trunc-len", 60), "the embedded text needs --length"),
        (("--split", "test"), "need --data"),
    ],
)
def test_impossible_options_of_the_command(given, message):
    with pytest.raises(UsageError, match=message):
        run("key-spans", *given)


def test_too_few_documents(data):
    with pytest.raises(UsageError, match="4 documents of at least 61 tokens are needed, and there are 3"):
        run("key-spans", "--data", data, "--num-samples", 4, "--trunc-len", 60, "--stride", 1000)


def test_a_text_longer_than_max_length_is_refused():
    short = MesaHFLM(method="origin", max_length=40)
    request = type("Request", (), {"args": (TEXTS[0], [(0, 500)])})
    with pytest.raises(UsageError, match="max_length=40 is shorter than a text with key tokens"):
        short.span_loglikelihood([request])


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=5))
def test_tokens_within_spans(widths, given_spans):
    offsets, place = [], 0
    for width in widths:
        offsets.append((place, place + width))
        place += width
    spans, low = [], 0
    for gap, width in given_spans:
        spans.append((low + gap % 5, low + gap % 5 + width))
        low = spans[-1][1]
    whole = merged(spans)
    inside = [
        i for i, (start, end) in enumerate(offsets) if start < end and any(a <= start and end <= b for a, b in whole)
    ]
    assert within(offsets, whole) == inside
    assert all(first[1] < second[0] for first, second in pairwise(whole))
    assert {n for a, b in whole for n in range(a, b)} == {n for a, b in spans for n in range(a, b)}
