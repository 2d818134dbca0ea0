"""long_ppl: held-out text of an exact length under any tokenizer, its options and its score."""

import json
import math
import re
import sysconfig
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from tiny_models import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mesa_lm.errors import UsageError
from mesa_lm.harness import tokenizing
from mesa_lm.harness.model import MesaHFLM
from mesa_lm.harness.task_manager import TaskManager
from mesa_lm.tasks.long_ppl import cutting, documents, embedded_text, samples, sources, task, windows

SPECIAL = ["<s>", "</s>", "<unk>"]
CORPUS = [embedded_text.held_out_text()[:20_000]]


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
    settings = {"num_samples": 7, "tokenizer": TOKENIZER, **options}
    return list(samples.long_ppl_dataset(length=length, **settings)["test"])


def texts(length: int = 101, **options: object) -> list[str]:
    return [doc["text"] for doc in docs(length, **options)]


@pytest.mark.parametrize("length", [19, 101, 997])
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
    source = embedded_text.held_out_text()
    lines = [line for line in source.split("\n") if line]
    found = texts(997)
    assert [text.split("\n")[0] for text in found] == [lines[i * len(lines) // 7] for i in range(7)]
    assert all(text in source for text in found)
    assert texts(997) == found


@pytest.fixture
def small_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifteen characters in three lines and an empty one, each a token; tails of three."""
    monkeypatch.setattr(embedded_text, "held_out_text", lambda: "ab cd\n\nef gh\nij")
    monkeypatch.setattr(embedded_text, "line_starts", embedded_text.line_starts.__wrapped__)
    monkeypatch.setattr(tokenizing, "token_counter", lambda *_: len)
    for module in (documents, samples):
        monkeypatch.setattr(module, "TAIL", 3)


@pytest.mark.usefixtures("small_source")
def test_text_goes_on_at_its_beginning() -> None:
    assert texts(5, num_samples=3) == ["ab cd", "ef gh", "ijab "]
    assert [doc["tail"] for doc in docs(5, num_samples=3)] == [" gh", " cd", "\n\ne"]


@pytest.mark.usefixtures("small_source")
def test_too_little_text() -> None:
    with pytest.raises(UsageError, match="^long_ppl: a length of 13 tokens and a tail of 3 "):
        docs(13, num_samples=2)
    with pytest.raises(UsageError, match="^long_ppl: num_samples must be at most 3, the number of lines .* found 4$"):
        docs(5, num_samples=4)


def test_too_short_a_length_names_the_least() -> None:
    with pytest.raises(UsageError, match="^long_ppl: a length of 1 tokens is too short for any text; .* at least 2$"):
        docs(1)
    with pytest.raises(UsageError, match="^long_ppl: a length of 2 tokens is too short for any text; .* at least"):
        docs(2)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_length_has_the_same_tail_after_as_many_tokens(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    rows = [docs(length, tokenizer=tokenizer, lengths=[97, 997, 1301]) for length in (97, 997, 1301)]
    for short, middle, long in zip(*rows, strict=True):
        assert short["tail"] == middle["tail"] == long["tail"]
        assert long["context"].endswith(middle["context"]) and middle["context"].endswith(short["context"])
        for doc in (short, middle, long):
            assert doc["length"] - 4 < len(tokenizer(doc["context"])["input_ids"]) <= doc["length"]
            assert doc["context"] == doc["context"].rstrip()
            assert abs(doc["tail_tokens"] - documents.TAIL) <= 3
            if name != "unsplit":
                context, both = (
                    tokenizer(text)["input_ids"] for text in (doc["context"], doc["context"] + doc["tail"])
                )
                assert both[: len(context) - 1] == context[:-1]


def test_tails_do_not_depend_on_which_lengths_run_together() -> None:
    alone, among = docs(97, lengths=[997]), docs(997, lengths=[97, 997])
    assert [doc["tail"] for doc in alone] == [doc["tail"] for doc in among]


@pytest.mark.parametrize(
    ("length", "edges"), [(256, [0, 256]), (383, [0, 383]), (384, [0, 256, 384]), (1301, [0, 256, 512, 1024, 1301])]
)
def test_stretches_double(length: int, edges: list[int]) -> None:
    (doc,) = docs(length, num_samples=1)
    assert doc["edges"] == edges
    assert doc["counts"][-1] == doc["tokens"]
    for start, count, edge in zip(doc["starts"], doc["counts"], edges, strict=False):
        assert count == len(TOKENIZER(doc["text"][:start])["input_ids"])
        assert edge - 30 < count <= max(edge, 65)


def test_an_input_counts_from_its_first_word() -> None:
    for doc in docs():
        assert re.fullmatch(r"\s*\S{1,64}", doc["text"][: doc["starts"][0]])


LONG, SHORT = " ".join(CORPUS[0].split()[:600]), "too short"


def written(folder: Path, texts: list[str]) -> None:
    folder.mkdir()
    for i, text in enumerate(texts):
        (folder / f"{i}.txt").write_text(text)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("kind", ["file", "folder", "jsonl", "parquet"])
def test_local_documents(kind: str, tmp_path: Path) -> None:
    rows = Dataset.from_list([{"text": SHORT, "title": "a"}, {"text": LONG, "title": "b"}])
    path, dropped, options = tmp_path / kind, 1, {}
    if kind == "file":
        path, dropped = tmp_path / "one.txt", 0
        path.write_text(LONG)
    elif kind == "folder":
        written(path, [SHORT, LONG])
    elif kind == "jsonl":
        path, options = tmp_path / "rows.jsonl", {"column": "text"}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        rows.to_parquet(path := tmp_path / "rows.parquet")
    (doc,) = docs(101, num_samples=None, data=str(path), **options)
    assert LONG.startswith(doc["text"]) and doc["context"] + doc["tail"] in LONG
    assert doc["documents_dropped"] == dropped
    whole = f"{LONG}\0" if kind == "file" else f"{SHORT}\0{LONG}\0"
    assert doc["source_sha256"] == sha256(whole.encode()).hexdigest()
    assert str(path) in doc["source"]


@pytest.mark.usefixtures("hub_cache")
def test_a_source_is_recognised_whatever_is_used_of_it(tmp_path: Path) -> None:
    written(tmp_path / "texts", [SHORT, LONG, f"{LONG} again"])
    settings = [{}, {"num_samples": 1}, {"length": 211}, {"tokenizer": TOKENIZERS["unsplit"]}]
    found = [docs(data=str(tmp_path / "texts"), **{"num_samples": 2} | setting)[0] for setting in settings]
    assert len({doc["source_sha256"] for doc in found}) == 1
    assert len({doc["text"] for doc in found}) > 1
    assert [doc["documents_dropped"] for doc in found] == [1, 1, 1, 1]
    (tmp_path / "texts" / "2.txt").write_text(f"{LONG} another time")
    assert docs(data=str(tmp_path / "texts"), num_samples=1)[0]["source_sha256"] != found[0]["source_sha256"]


BOOK = " ".join(f"{word}{i}" for i, word in enumerate((CORPUS[0] * 3).split()))


def places(found: list[dict], text: str) -> list[tuple[int, int]]:
    """Where in a text the samples lie, with their tails, from character to character."""
    starts = [text.index(doc["text"]) for doc in found]
    return [
        (start, text.index(doc["tail"], start) + len(doc["tail"])) for start, doc in zip(starts, found, strict=True)
    ]


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("number", [1, 2, 3, 17])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_long_file_gives_windows_spread_evenly_over_it(number: int, name: str, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text(BOOK)
    settings = {"num_samples": number, "data": str(path), "tokenizer": TOKENIZERS[name]}
    found = docs(101, **settings)
    assert len(found) == number and {doc["overlapping"] for doc in found} == {0}
    lie = places(found, BOOK)
    assert all(end <= start for (_, end), (start, _) in pairwise(lie))
    gaps = [
        len(TOKENIZERS[name](BOOK[start:later], add_special_tokens=False)["input_ids"])
        for (start, _), (later, _) in pairwise(lie)
    ]
    word = 30  # tokens
    assert lie[0][0] == 0 and max(gaps, default=0) - min(gaps, default=0) < word
    assert number == 1 or len(TOKENIZERS[name](BOOK[lie[-1][1] :])["input_ids"]) < number * word
    for doc in found:
        assert BOOK.startswith(doc["text"]) or doc["text"][0] == " "
        assert 101 - 4 < doc["tokens"] <= 101


@pytest.mark.usefixtures("hub_cache")
def test_windows_overlap_by_half_at_most_and_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "short.txt").write_text(LONG)
    settings = {"data": str(tmp_path / "short.txt")}
    tokens = len(TOKENIZER(LONG)["input_ids"])
    window = 101 + documents.TAIL
    most = 2 * tokens // window - 1
    found = docs(101, num_samples=most - 1, **settings)
    assert found[0]["overlapping"] == most - 2 > 0
    assert "overlap the one before, so that standard errors are too small" in caplog.text
    with pytest.raises(
        UsageError, match=rf"{most + 1} documents, or windows of long ones, of {window} tokens .* holds"
    ):
        docs(101, num_samples=most + 1, **settings)
    with pytest.raises(UsageError, match="2 documents of 357 tokens .* holds 1; lower lengths or num_samples$"):
        docs(101, num_samples=2, one_per_document=True, **settings)


@given(tokens=st.lists(st.integers(100, 5000), min_size=1, max_size=6), wanted=st.integers(1, 60))
def test_windows_are_shared_out_by_length(tokens: list[int], wanted: int) -> None:
    numbers = windows.windows_per_document(tokens, 100, max(wanted, len(tokens)))
    assert len(numbers) == len(tokens) and min(numbers) >= 1
    for count, number in zip(tokens, numbers, strict=True):
        assert number == 1 or (count - 100) / (number - 1) >= 50
    if sum(numbers) < wanted:
        assert all((count - 100) / number < 50 for count, number in zip(tokens, numbers, strict=True))
    assert max(numbers) == max(number for count, number in zip(tokens, numbers, strict=True) if count == max(tokens))


@pytest.mark.usefixtures("hub_cache")
def test_documents_come_before_windows(tmp_path: Path) -> None:
    written(tmp_path / "texts", [LONG, BOOK, SHORT])
    two = docs(101, num_samples=2, data=str(tmp_path / "texts"))
    assert [LONG.startswith(two[0]["text"]), BOOK.startswith(two[1]["text"])] == [True, True]
    five = docs(101, num_samples=5, data=str(tmp_path / "texts"))
    assert [doc["text"] in LONG for doc in five] == [True, False, False, False, False]
    assert {doc["documents_dropped"] for doc in five} == {1}


@pytest.mark.usefixtures("small_source")
def test_the_embedded_text_says_where_it_overlaps() -> None:
    assert docs(5, num_samples=1)[0]["overlapping"] == 0
    assert docs(5, num_samples=3)[0]["overlapping"] == 3
    found = documents.documents(None, 3, 2, len)
    assert found.texts == (("ab cd", "\n\ne"), ("ef gh", "\nij")) and found.overlapping == 1


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_samples": 2, "one_per_document": True},
            "2 documents of 357 tokens .* holds 1; the shorter ones have 7 to 7 tokens",
        ),
        ({"num_samples": 99}, "99 documents, or windows of long ones, of 357 tokens .* the shorter ones have 7"),
        ({"one_per_document": 1}, "one_per_document must be true or false; found 1"),
        ({"lengths": [10**5], "num_samples": None}, "at least 1 documents of 100256 tokens .* holds 0; "),
        ({"column": "body"}, "column must be one of text .* found 'body'"),
        ({"data": "./nowhere"}, "there is no file or folder './nowhere'"),
        ({"data": "pg-19"}, "did you mean 'pg19'"),
        ({"data": "owner/name"}, "cannot read data 'owner/name'"),
        ({"data": 7}, "data must be a string; found 7"),
    ],
)
def test_unusable_sources(options: dict[str, object], message: str, tmp_path: Path) -> None:
    written(tmp_path / "texts", [SHORT, LONG])
    with pytest.raises(UsageError, match=f"^(long_ppl: |unknown long_ppl).*{message}") as caught:
        docs(101, **{"data": str(tmp_path / "texts"), "num_samples": 1, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("hub_cache")
def test_a_folder_without_documents_names_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.bin").touch()
    with pytest.raises(UsageError, match=r"must hold files of \.txt, .*; found \.bin"):
        docs(data=str(tmp_path))


def test_source_is_recorded() -> None:
    digest = sha256(embedded_text.held_out_text().encode()).hexdigest()
    assert {doc["source_sha256"] for doc in docs()} == {digest}


def test_source_is_held_out_from_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(50):
        (tmp_path / f"m{i}.py").write_text(f"{i}\n")
    for excluded in ("test", "site-packages"):
        (tmp_path / excluded).mkdir()
        (tmp_path / excluded / "m.py").write_text("excluded\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    training, held_out = (embedded_text.standard_library(held_out=part) for part in (False, True))
    assert 0 < len(held_out) < len(training)
    assert sorted(training + held_out) == sorted(f"{i}\n" for i in range(50))


@given(weights=st.lists(st.integers(1, 5), min_size=1, max_size=200), share=st.floats(0, 1), special=st.integers(0, 2))
def test_cut_is_the_longest_that_fits(weights: list[int], share: float, special: int) -> None:
    """Characters of several tokens each, so that not every length can be met."""
    text = "".join(map(str, weights))

    def count(part: str) -> int:
        return special + sum(map(int, part))

    length = round(count(text[:1]) + share * (count(text) - count(text[:1])))
    cut = cutting.longest_piece(text, length, count)
    assert text.startswith(cut)
    assert count(cut) <= length
    assert cut == text or count(text[: len(cut) + 1]) > length


def test_few_counts_are_needed() -> None:
    source, calls = embedded_text.held_out_text(), []

    def count(part: str) -> int:
        calls.append(part)
        return len(TOKENIZER(part)["input_ids"])

    for start in embedded_text.line_starts()[:5000:500]:
        cutting.longest_piece(source[start:], 997, count)
    assert len(calls) <= 10 * 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_sample": 5}, "unknown long_ppl option 'num_sample'; did you mean 'num_samples'?"),
        ({"lenghts": [5]}, "did you mean 'lengths'?"),
        ({"length": 5}, "did you mean 'lengths'?"),
        ({"num_samples": 0}, "num_samples must be a whole number of at least 1; found 0"),
        ({"num_samples": "5"}, "found '5'"),
        (
            {"num_samples": 10**6},
            f"must be at most {len(embedded_text.line_starts())}, the number of lines",
        ),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        samples.check_options(options)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="long_ppl"):
        TaskManager(include_defaults=False, metadata=options).match_tasks(["long_ppl_4k"])


def test_options_of_models_and_other_tasks_pass() -> None:
    samples.check_options({"lengths": [5], "num_samples": 5, "max_length": 5, "depths": 5, "prompt": "chat", "seed": 1})


def test_scores() -> None:
    doc = {
        "text": "ab cd\u00e9 ef gh",
        "starts": [2, 8],
        "counts": [3, 7, 12],
        "edges": [0, 256, 500],
        "tail_tokens": 4,
    }
    found = task.measures(doc, [(-18.0, False), (-10.0, True), (-6.0, False)])
    assert found == {
        "nll": 2.0,
        "tail_nll": 1.5,
        "bits_per_byte": pytest.approx(18 / 11 / math.log(2)),
        "word_perplexity": -6.0,
        "nll_0_256": 2.0,
        "nll_256_500": 2.0,
    }


def test_scores_that_contradict_each_other_are_no_result() -> None:
    doc = {"text": "ab cd ef gh", "starts": [2, 5], "counts": [3, 7, 12], "edges": [0, 256, 500], "tail_tokens": 4}
    task.measures(doc, [(-18.0, False), (-18.01, False), (-6.0, False)])  # rounding
    with pytest.raises(UsageError, match="nll_0_256 is negative, -0.500: .* give it logits_cache=False"):
        task.measures(doc, [(-18.0, False), (-20.0, False), (-6.0, False)])


def token_nll(model: torch.nn.Module, text: str) -> torch.Tensor:
    """The NLL of each token after the first, by transformers alone."""
    tokens = torch.tensor([TOKENIZER(text)["input_ids"]])
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(model(tokens[:, :-1]).logits[0], tokens[0, 1:], reduction="none")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    # hf gives the answers of shared inputs in the wrong order of positions unless told not to share.
    ("kind", "options"),
    [(HFLM, {"logits_cache": False}), (MesaHFLM, {"method": "origin"})],
)
def test_run_by_lm_eval(kind: type, options: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    model = tiny_model(vocab_size=len(TOKENIZER), max_position_embeddings=1009)
    metadata = {"tokenizer": TOKENIZER, "lengths": [397, 29], "num_samples": 5}
    tasks = TaskManager(include_defaults=False, metadata=metadata)
    harness = kind(pretrained=model, tokenizer=TOKENIZER, **options)
    found = simple_evaluate(harness, tasks=["long_ppl"], task_manager=tasks, limit=3, bootstrap_iters=10)
    means = []
    for length in (29, 397):
        samples = docs(length, num_samples=5, lengths=[29, 397])[:3]
        row = found["results"][f"long_ppl_{length}"]
        whole = [token_nll(model, doc["text"])[doc["counts"][0] - 1 :] for doc in samples]
        values = torch.stack([part.mean() for part in whole])
        assert row["nll,none"] == pytest.approx(float(values.mean()), rel=1e-5)
        assert row["nll_stderr,none"] == pytest.approx(float(values.std()) / math.sqrt(3), rel=1e-3)
        tails = [token_nll(model, doc["context"] + doc["tail"])[-doc["tail_tokens"] :].mean() for doc in samples]
        assert row["tail_nll,none"] == pytest.approx(float(sum(tails)) / 3, rel=1e-5)
        assert row["word_perplexity,none"] > 1 and row["tail_nll_stderr,none"] > 0
        means.append(row["nll,none"])
    parts = [token_nll(model, doc["text"])[doc["counts"][1] - 1 :].mean() for doc in samples]
    assert row["nll_256_397,none"] == pytest.approx(float(sum(parts)) / 3, rel=1e-4)
    assert found["results"]["long_ppl"]["nll,none"] == pytest.approx(sum(means) / 2)
    assert found["configs"]["long_ppl_397"]["metadata"]["source_sha256"] == samples[0]["source_sha256"]
    assert found["higher_is_better"]["long_ppl_397"]["nll_256_397"] is False


def test_lengths_use_the_same_documents_by_default() -> None:
    folder = Path(task.__file__).parent
    group, leaf = (yaml.load((folder / name).read_text(), Loader=AnyTag) for name in ("long_ppl.yaml", "_length.yaml"))
    assert group["metadata"]["lengths"] == leaf["metadata"]["lengths"]


class AnyTag(yaml.SafeLoader):
    """YAML whose functions are not loaded."""


AnyTag.add_constructor("!function", lambda loader, node: node.value)


def test_an_empty_cell_is_a_document_that_is_too_short(tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_text('{"text": null}\n{"text": "some words"}\n')
    assert list(sources.read_documents(sources.Source(str(path)))) == ["", "some words"]
