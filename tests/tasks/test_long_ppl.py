"""long_ppl: held-out text of an exact length under any tokenizer, its options and its score."""

import math
import re
import sysconfig
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from lm_eval import simple_evaluate
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mesa_lm.discovery import TaskManager
from mesa_lm.errors import UsageError
from mesa_lm.harness import MesaHFLM
from tasks.long_ppl import source_text, utils

SPECIAL = ["<s>", "</s>", "<unk>"]
CORPUS = [utils.source_text()[:20_000]]


def wrapped(tokenizer: Tokenizer, single: str) -> PreTrainedTokenizerFast:
    ids = [(token, tokenizer.token_to_id(token)) for token in SPECIAL]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def byte_level(single: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrapped(tokenizer, single)


def unsplit() -> PreTrainedTokenizerFast:
    """Tokens that cross words and lines."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.train_from_iterator([CORPUS[0][:2000]], trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL))
    return wrapped(tokenizer, "<s> $A")


TOKENIZERS = {"bos": byte_level("<s> $A"), "eos": byte_level("$A </s>"), "none": byte_level("$A"), "unsplit": unsplit()}
TOKENIZER = TOKENIZERS["bos"]


def docs(length: int = 101, **options: object) -> list[dict]:
    return list(utils.long_ppl_dataset(length=length, **{"num_samples": 7, "tokenizer": TOKENIZER, **options})["test"])


def texts(length: int = 101, **options: object) -> list[str]:
    return [doc["text"] for doc in docs(length, **options)]


@pytest.mark.parametrize("length", [3, 101, 997])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_samples_are_as_long_as_asked(name: str, length: int) -> None:
    tokenizer = TOKENIZERS[name]
    for doc in docs(length, tokenizer=tokenizer):
        assert doc["length"] == length
        assert length - 4 < doc["tokens"] == len(tokenizer(doc["text"])["input_ids"]) <= length


def test_add_bos_token_is_honoured() -> None:
    for doc in docs(add_bos_token=False):
        assert len(TOKENIZER(doc["text"], add_special_tokens=False)["input_ids"]) == doc["tokens"]


def test_longer_samples_begin_with_the_shorter_ones() -> None:
    for short, long in zip(texts(101), texts(997), strict=True):
        assert long.startswith(short)


def test_samples_start_at_evenly_spaced_lines() -> None:
    source = utils.source_text()
    lines = [line for line in source.split("\n") if line]
    found = texts(997)
    assert [text.split("\n")[0] for text in found] == [lines[i * len(lines) // 7] for i in range(7)]
    assert all(text in source for text in found)
    assert texts(997) == found


@pytest.fixture
def small_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven characters in two lines and an empty one, each a token."""
    monkeypatch.setattr(utils, "source_text", lambda: "ab\n\ncd\n")
    monkeypatch.setattr(utils, "line_starts", utils.line_starts.__wrapped__)
    monkeypatch.setattr(utils, "token_counter", lambda *_: len)


@pytest.mark.usefixtures("small_source")
def test_text_goes_on_at_its_beginning() -> None:
    assert texts(5, num_samples=2) == ["ab\n\nc", "cd\nab"]
    assert texts(7, num_samples=2) == ["ab\n\ncd\n", "cd\nab\n\n"]


@pytest.mark.usefixtures("small_source")
def test_too_little_text() -> None:
    with pytest.raises(UsageError, match="^long_ppl: a length of 8 tokens is longer than the whole .* at most 7$"):
        docs(8, num_samples=2)
    with pytest.raises(UsageError, match="^long_ppl: num_samples must be at most 2, the number of lines .* found 3$"):
        docs(5, num_samples=3)


def test_too_short_a_length_names_the_least() -> None:
    with pytest.raises(UsageError, match="^long_ppl: a length of 1 tokens is too short for any text; .* at least 2$"):
        docs(1)
    assert all(docs(2))


def test_source_is_recorded() -> None:
    digest = sha256(utils.source_text().encode()).hexdigest()
    assert {doc["source_sha256"] for doc in docs()} == {digest}


def test_source_is_held_out_from_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(50):
        (tmp_path / f"m{i}.py").write_text(f"{i}\n")
    for excluded in ("test", "site-packages"):
        (tmp_path / excluded).mkdir()
        (tmp_path / excluded / "m.py").write_text("excluded\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    training, held_out = (source_text.standard_library(held_out=part) for part in (False, True))
    assert 0 < len(held_out) < len(training)
    assert sorted(training + held_out) == sorted(f"{i}\n" for i in range(50))


@given(weights=st.lists(st.integers(1, 5), min_size=1, max_size=200), share=st.floats(0, 1), special=st.integers(0, 2))
def test_cut_is_the_longest_that_fits(weights: list[int], share: float, special: int) -> None:
    """Characters of several tokens each, so that not every length can be met."""
    text = "".join(map(str, weights))

    def count(part: str) -> int:
        return special + sum(map(int, part))

    length = round(count(text[:1]) + share * (count(text) - count(text[:1])))
    cut = utils.longest_prefix(text, length, count)
    assert text.startswith(cut)
    assert count(cut) <= length
    assert cut == text or count(text[: len(cut) + 1]) > length


def test_few_counts_are_needed() -> None:
    source, calls = utils.source_text(), []

    def count(part: str) -> int:
        calls.append(part)
        return len(TOKENIZER(part)["input_ids"])

    for start in utils.line_starts()[:5000:500]:
        utils.longest_prefix(source[start:], 997, count)
    assert len(calls) <= 10 * 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_sample": 5}, "unknown long_ppl option 'num_sample'; did you mean 'num_samples'?"),
        ({"lenghts": [5]}, "did you mean 'lengths'?"),
        ({"length": 5}, "did you mean 'lengths'?"),
        ({"num_samples": 0}, "num_samples must be a whole number of at least 1; found 0"),
        ({"num_samples": "5"}, "found '5'"),
        ({"num_samples": 10**6}, f"must be at most {len(utils.line_starts())}, the number of lines of the held-out"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        utils.check_options(options)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="long_ppl"):
        TaskManager(include_defaults=False, metadata=options).match_tasks(["long_ppl_4k"])


def test_options_of_models_and_other_tasks_pass() -> None:
    utils.check_options({"lengths": [5], "num_samples": 5, "max_length": 5, "depths": 5, "prompt": "chat", "seed": 1})


def test_score() -> None:
    assert utils.score({"tokens": 4}, [-6.0]) == {"nll": 1.5}


def reference(model: torch.nn.Module, text: str) -> float:
    """The mean NLL of a text's tokens after BOS, by transformers alone."""
    tokens = torch.tensor([[TOKENIZER.bos_token_id, *TOKENIZER(text)["input_ids"]]])
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(model(tokens[:, :-1]).logits[0], tokens[0, 1:]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_run_by_lm_eval() -> None:
    model = tiny_model(vocab_size=len(TOKENIZER))
    metadata = {"tokenizer": TOKENIZER, "lengths": [83, 29], "num_samples": 5}
    tasks = TaskManager(include_defaults=False, metadata=metadata)
    harness = MesaHFLM(pretrained=model, tokenizer=TOKENIZER, method="origin")
    results = simple_evaluate(harness, tasks=["long_ppl"], task_manager=tasks, limit=3, bootstrap_iters=10)["results"]
    means = []
    for length in (29, 83):
        values = torch.tensor([reference(model, text) for text in texts(length, num_samples=5)[:3]])
        row = results[f"long_ppl_{length}"]
        assert row["nll,none"] == pytest.approx(float(values.mean()), rel=1e-5)
        assert row["nll_stderr,none"] == pytest.approx(float(values.std()) / math.sqrt(3), rel=1e-3)
        means.append(row["nll,none"])
    assert results["long_ppl"]["nll,none"] == pytest.approx(sum(means) / 2)
