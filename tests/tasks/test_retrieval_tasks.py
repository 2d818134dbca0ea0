"""Pairs, several keys and chains: what is hidden, that only one answer is right, at which length, how it is scored."""

import inspect
import random
import re
from collections import Counter
from dataclasses import fields
from itertools import pairwise

import pytest
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM

from mesa_lm.demo import MODEL_PATH
from mesa_lm.errors import UsageError
from mesa_lm.harness.task_manager import TaskManager
from mesa_lm.harness.tokenizing import task_encoding
from mesa_lm.methods.registry import available_methods
from mesa_lm.tasks.chain_long import chains
from mesa_lm.tasks.fitting import most_that_fit
from mesa_lm.tasks.kv_long import pairs
from mesa_lm.tasks.multikey_long import keys
from mesa_lm.tasks.passkey_long.texts import FILLER

MODEL = {"pretrained": str(MODEL_PATH)}
COUNT = task_encoding(MODEL).count
COMMON = {"num_samples": 5, "prompt": "answer", "seed": 0, **MODEL}
LINE = re.compile(r"^([a-z]+)-([a-z]+): (\d{5})$", re.MULTILINE)


def kv_docs(length=601, **options):
    return list(pairs.pairs_dataset(length=length, **COMMON | options)["test"])


def multikey_docs(length=601, **options):
    return list(keys.keys_dataset(length=length, **COMMON | {"keys": 4} | options)["test"])


def chain_docs(length=601, **options):
    return list(chains.chains_dataset(length=length, **COMMON | {"hops": 2, "chains": 4} | options)["test"])


DOCS = {"kv_long": kv_docs, "multikey_long": multikey_docs, "chain_long": chain_docs}
CHECKS = {"kv_long": pairs, "multikey_long": keys, "chain_long": chains}


@pytest.mark.parametrize("task", DOCS)
@pytest.mark.parametrize("length", [701, 4099])
@pytest.mark.parametrize("prompt", ["answer", "plain"])
def test_prompts_are_as_long_as_asked(task, length, prompt):
    longest_piece = 40  # tokens, more than a line or a filler sentence has
    for doc in DOCS[task](length, prompt=prompt):
        assert length - longest_piece < doc["tokens"] == COUNT(doc["prompt"]) <= length == doc["length"]


@pytest.mark.parametrize("task", DOCS)
def test_questions_depend_on_seed_length_and_index_alone(task):
    docs = DOCS[task]()
    assert DOCS[task]() == docs
    assert DOCS[task](num_samples=2) == docs[:2]
    texts = {doc["prompt"] for doc in [*docs, *DOCS[task](seed=1), *DOCS[task](602)]}
    assert len(texts) == 15


def test_the_tasks_have_questions_of_their_own():
    assert not {doc["key"] for doc in kv_docs()} & {key for doc in multikey_docs() for key in doc["keys"]}


@pytest.mark.parametrize("length", [601, 8209])
def test_every_key_stands_once_and_shares_both_words(length):
    for doc in kv_docs(length, num_samples=20) + multikey_docs(length):
        listed = LINE.findall(doc["prompt"])
        assert len(listed) == doc["pairs"] >= pairs.LEAST_PAIRS
        found = {f"{first}-{second}": int(value) for first, second, value in listed}
        assert len(found) == len(set(found.values())) == doc["pairs"]
        asked, values = doc.get("keys") or [doc["key"]], doc.get("values") or [doc["value"]]
        assert [found[key] for key in asked] == values
        assert len(set(asked)) == len(asked)
        firsts, seconds = (Counter(words) for words in list(zip(*listed, strict=True))[:2])
        for key in asked:
            first, second = key.split("-")
            assert firsts[first] >= pairs.COLUMNS and seconds[second] >= 2
            assert first != second
        places = [list(found).index(key) / (len(found) - 1) for key in asked]
        assert places == (doc.get("depths") or [doc["depth"]])


def test_the_key_asked_for_is_anywhere():
    thirds = Counter(int(doc["depth"] * 3 - 1e-9) for doc in kv_docs(num_samples=300))
    assert all(70 < thirds[third] < 130 for third in range(3))


def test_keys_are_asked_for_in_an_order_of_their_own():
    docs = multikey_docs(num_samples=30)
    assert sum(doc["depths"] == sorted(doc["depths"]) for doc in docs) < 8
    for doc in docs:
        named = f"{', '.join(doc['keys'][:-1])} and {doc['keys'][-1]}"
        assert doc["prompt"].endswith(f"The values of {named}, in this order, are")


def test_all_keys_that_the_words_give_differ():
    drawn = pairs.PairList(random.Random(0), asked=1).pairs(pairs.MOST_PAIRS + 1)
    assert len(drawn) == pairs.MOST_PAIRS == len({pair.key for pair in drawn}) == len({pair.value for pair in drawn})


@pytest.mark.parametrize(("hops", "number"), [(1, 1), (2, 4), (12, 12)])
def test_a_chain_leads_to_one_number_in_the_order_of_its_links(hops, number):
    for doc in chain_docs(6007, hops=hops, chains=number):
        text = doc["prompt"]
        assert text.count("Let ") == number * (hops + 1)
        first = f"Let {doc['names'][0]} be {doc['value']}."
        links = [f"Let {after} be the same as {before}." for before, after in pairwise(doc["names"])]
        places = [text.index(statement) for statement in [first, *links]]
        assert len(links) == hops and places == sorted(places)
        defined = re.findall(r"Let (\w+) be", text)
        assert len(set(defined)) == len(defined)
        numbers = re.findall(r"\d{5}", text)
        assert len(set(numbers)) == len(numbers) == number
        assert text.endswith(f"The number {doc['names'][-1]} is")
        body = re.sub(r"Let \w+ be [^.]+\.", "", text.removeprefix(chains.HEAD).partition("\n\n")[0])
        assert re.sub(r" +", " ", body).strip().replace(FILLER, "").strip() == ""


def test_statements_stand_anywhere_and_no_name_is_a_word_of_the_filler():
    docs = chain_docs(num_samples=200, hops=1, chains=1)
    shares = [doc["prompt"].index(f"Let {doc['names'][0]} be") / len(doc["prompt"]) for doc in docs]
    assert min(shares) < 0.25 and max(shares) > 0.7
    assert not set(chains.NAMES) & set(re.findall(r"\w+", FILLER))
    assert (chains.MOST + 1) * chains.MOST <= len(chains.NAMES)


@pytest.mark.parametrize(
    ("answer", "acc", "exact_match"),
    [
        (" 12345.", 1, 1),
        ("12345", 1, 1),
        ("It is 012345, not 7", 1, 0),
        ("7, 12345", 0, 0),
        ("12,345", 0, 0),
        ("", 0, 0),
    ],
)
@pytest.mark.parametrize("module", [pairs, chains])
def test_one_number_is_scored_strictly(module, answer, acc, exact_match):
    assert module.score({"value": 12345}, [answer]) == {"acc": acc, "exact_match": exact_match}


@pytest.mark.parametrize(
    ("answer", "acc", "key_acc", "any_order"),
    [
        (" 11, 22, 33 and 44. 55", 1, 1, 1),
        ("11 22 44 33", 0, 0.5, 1),
        ("11 11 11 11", 0, 0.25, 0.25),
        ("22 33 44", 0, 0, 0.75),  # one that is left out moves the others
        ("5 11 22 33 44", 0, 0, 0.75),
        ("11, 22", 0, 0.5, 0.5),
        ("none", 0, 0, 0),
    ],
)
def test_several_numbers_are_scored_at_their_places(answer, acc, key_acc, any_order):
    expected = {"acc": acc, "key_acc": key_acc, "any_order": any_order}
    assert keys.score({"values": [11, 22, 33, 44]}, [answer]) == expected


@pytest.mark.parametrize("task", DOCS)
def test_impossible_lengths_name_the_least(task):
    with pytest.raises(
        UsageError, match=rf"^{task}: a length of 50 tokens is too short .* at least about \d+"
    ) as caught:
        DOCS[task](50)
    least = int(re.search(r"at least about (\d+)", str(caught.value))[1])
    assert len(DOCS[task](least + 60)) == 5


@pytest.mark.parametrize("task", ["kv_long", "multikey_long"])
def test_lengths_that_need_more_keys_than_there_are_are_refused(task, monkeypatch):
    monkeypatch.setattr(pairs, "MOST_PAIRS", 50)
    with pytest.raises(UsageError, match=f"^{task}: a length of 5000 tokens takes more than the 50 pairs"):
        DOCS[task](5000)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("kv_long", {"num_sample": 5}, "unknown kv_long option 'num_sample'; did you mean 'num_samples'?"),
        ("kv_long", {"prompt": "anwser"}, "unknown kv_long prompt 'anwser'; did you mean 'answer'?"),
        ("kv_long", {"seed": 0.5}, "seed must be a whole number; found 0.5"),
        ("multikey_long", {"keys": 9}, "keys must be a whole number from 2 to 8; found 9"),
        ("multikey_long", {"key": 4}, "did you mean 'keys'?"),
        ("chain_long", {"hop": 2}, "unknown chain_long option 'hop'; did you mean 'hops'?"),
        ("chain_long", {"hops": 13}, "hops must be a whole number from 1 to 12; found 13"),
        ("chain_long", {"chains": True}, "chains must be a whole number from 1 to 12; found True"),
    ],
)
def test_wrong_options(task, options, message):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        CHECKS[task].check_options(options)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=task):
        TaskManager(include_defaults=False, metadata=options).match_tasks([f"{task}_4k"])


@pytest.mark.parametrize("task", DOCS)
def test_arguments_of_models_are_no_misspelt_options(task):
    names = [*inspect.signature(HFLM.__init__).parameters, "max_seq_lengths", "max_model_len"]
    names += [field.name for method in available_methods().values() for field in fields(method)]
    CHECKS[task].check_options(dict.fromkeys(names, 1))


def test_lm_eval_runs_all_three_with_a_row_and_an_error_for_each_length():
    metadata = {"num_samples": 2, "lengths": [600, 701]}
    found = simple_evaluate("mesa-hf", tasks=list(DOCS), metadata=metadata, bootstrap_iters=0)
    measured = {"kv_long": ["acc", "exact_match"], "multikey_long": ["acc", "key_acc", "any_order"]}
    for task in DOCS:
        for name in (f"{task}_600", f"{task}_701", task):
            for metric in measured.get(task, ["acc", "exact_match"]):
                assert 0 <= found["results"][name][f"{metric},none"] <= 1
        assert f"{metric}_stderr,none" in found["results"][f"{task}_600"]
        assert found["n-samples"][f"{task}_701"]["effective"] == 2


@pytest.mark.parametrize("per_piece", [1, 3, 17])
@pytest.mark.parametrize("fixed", [0, 5, 90])
def test_the_most_pieces_that_fit_are_found_in_few_counts(per_piece, fixed):
    counted = []

    def count(text):
        counted.append(text)
        return fixed + len(text)

    for length in (107, 997, 100_003):
        found = most_that_fit(lambda pieces: "x" * per_piece * pieces, length, count, least=0, most=10**6)
        assert fixed + per_piece * found <= length < fixed + per_piece * (found + 1)
    assert len(counted) <= 3 * 6
    assert most_that_fit(lambda pieces: "x" * pieces, 10**6, len, least=0, most=7) == 7
