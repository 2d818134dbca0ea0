"""nolima_long on small needles of NoLiMa's form: placement, scoring, base score and effective length."""

import json
import re
from collections import Counter

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.model import LM

from mesa_lm.demo import MODEL_PATH
from mesa_lm.errors import UsageError
from mesa_lm.harness.task_manager import TaskManager
from mesa_lm.harness.tokenizing import task_encoding
from mesa_lm.tasks.nolima_long import effective_length, questions
from mesa_lm.tasks.nolima_long.needle_set import Needle, NeedleSet, read_needle_set

MODEL = {"pretrained": str(MODEL_PATH)}
COUNT = task_encoding(MODEL).count
TEMPLATE = "Read this.\n{haystack}\nAnswer briefly: {question}\nAnswer:"
NAMES = ["Mirela", "Tovik", "Osane"]
EXPERIMENT = {
    "id": "0901",
    "reasoning_type": "world_knowledge",
    "system_prompt": "",
    "task_template": TEMPLATE,
    "needle": "{CHAR} keeps a {1} in the yard.",
    "questions": {"onehop": "Who owns {2}?", "twohop": "Who owns {3}?"},
    "character_set": NAMES,
    "tests": {
        "T01": {"input_args": ["hen", "a bird", "something that lays eggs"]},
        "T02": {"input_args": ["mare", "a horse", "something with hooves"]},
    },
}
HAYSTACKS = {
    f"book_{i}": "\n".join(" ".join(f"w{i}{line}x{word}" for word in range(7)) for line in range(900)) for i in (1, 2)
}


@pytest.fixture
def data(tmp_path):
    return saved(tmp_path, [EXPERIMENT])


def saved(folder, experiments):
    (folder / "needlesets").mkdir(parents=True)
    (folder / "needlesets" / "needle_set.json").write_text(json.dumps(experiments))
    (folder / "haystack" / "rand_shuffle").mkdir(parents=True)
    for name, text in HAYSTACKS.items():
        (folder / "haystack" / "rand_shuffle" / f"{name}.txt").write_text(text)
    return str(folder)


def docs(data, length=500, **options):
    given = {"num_samples": 3, "depths": 5, "seed": 0, "needles": "needle_set", "data": data, **MODEL, **options}
    return list(questions.nolima_dataset(length=length, **given)["test"])


@pytest.mark.parametrize("length", [250, 2003])
def test_the_needle_stands_at_its_depth_between_lines_of_one_haystack(data, length):
    for doc in docs(data, length, num_samples=10):
        assert length - 12 < doc["tokens"] == COUNT(doc["prompt"]) <= length
        haystack, rest = re.fullmatch(r"Read this\.\n(.*)\nAnswer briefly: (.*)", doc["prompt"], re.DOTALL).groups()
        thing = {"T01": "hen", "T02": "mare"}[doc["needle"].split("_")[1]]
        needle = f"{doc['answer']} keeps a {thing} in the yard.\n"
        before, after = haystack.split(needle)
        assert f"{before.rstrip()}\n{after}".strip() in HAYSTACKS[doc["haystack"]]
        assert not before or re.search(r"x6 $", before)  # the last word of a line
        words = len(before.split()), len(after.split())
        assert words[0] == round(doc["depth"] * sum(words))
        wanted = "something" if doc["needle"].endswith("twohop") else r"a (bird|horse)\?"
        assert re.match(rf"Who owns {wanted}", rest)


def test_all_lengths_ask_the_same_and_pairs_take_turns(data):
    columns = ("needle", "haystack", "depth", "answer")
    drawn = [[tuple(doc[name] for name in columns) for doc in docs(data, length)] for length in (250, 901)]
    assert drawn[0] == drawn[1] == [tuple(doc[name] for name in columns) for doc in docs(data)]
    assert len(set(Counter(needle for needle, *_ in drawn[0][:8]).values())) == 1
    assert len({needle for needle, *_ in drawn[0][:4]}) == 4
    assert drawn[0] != [tuple(doc[name] for name in columns) for doc in docs(data, 250, seed=1)]


def test_all_placements_are_every_depth_of_every_haystack(data):
    found = docs(data, 300, num_samples=10)
    for needle in {doc["needle"] for doc in found}:
        places = {(doc["haystack"], doc["depth"]) for doc in found if doc["needle"] == needle}
        assert places == {(name, i / 4) for name in HAYSTACKS for i in range(5)}
    assert {doc["answer"] for doc in found} == set(NAMES)
    with pytest.raises(UsageError, match="num_samples must be at most 10, 5 depths in 2 haystacks; found 11"):
        docs(data, num_samples=11)


def test_braces_in_a_haystack_stay():
    haystack = questions.Haystack("h", ("{question} ", "b\n"), (0, 2))
    needle = Needle("n", "{CHAR} sang.", "Who sang?", "{haystack}|{question}", ("Osane",))
    placement = questions.HiddenNeedle(needle, haystack, 1.0, "Osane")
    assert placement.prompt(2) == "{question} b Osane sang.\n|Who sang?"
    assert placement.prompt(0) == "Osane sang.\n|Who sang?"


def test_answers_that_contain_the_name_are_right():
    doc = {"answer": "Tovik"}
    assert questions.score(doc, [" Tovik. "]) == {"acc": 1.0, "exact_match": 1.0}
    assert questions.score(doc, ["It was Tovik, I think"]) == {"acc": 1.0, "exact_match": 0.0}
    assert questions.score(doc, ["tovik"]) == {"acc": 0.0, "exact_match": 0.0}


def logged(scores):
    return [{"doc": {"needle": needle}, "acc": acc} for needle, found in scores.items() for acc in found]


def test_base_score_and_effective_length_are_those_of_the_authors():
    samples = {
        250: logged({"a": [1, 0], "b": [0, 0]}),
        500: logged({"a": [0, 0], "b": [1, 0]}),
        1000: logged({"a": [1, 1], "b": [0, 0]}),
        2000: logged({"a": [1, 1], "b": [1, 0]}),
        4000: logged({"a": [1, 0], "b": [0, 0]}),
    }
    # a: max(.5, 0, 1), b: max(0, .5, 0); the threshold is 0.6375
    assert effective_length.base_score_and_effective_length(samples) == {"base_score": 0.75, "effective_length": 2000}
    assert (
        effective_length.base_score_and_effective_length({n: samples[n] for n in (250, 500, 1000)})["effective_length"]
        == 0
    )
    assert effective_length.base_score_and_effective_length({n: samples[n] for n in (250, 500, 2000)}) == {}


class Reader(LM):
    """Says the name in prompts of at most 600 tokens, and nothing else."""

    def generate_until(self, requests, disable_tqdm=False):
        return [request.doc["answer"] if request.doc["length"] <= 600 else "?" for request in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


@pytest.mark.parametrize("log_samples", [True, False])
def test_the_group_says_how_far_it_goes(data, log_samples):
    metadata = {"data": data, "num_samples": 1, "depths": 3, "lengths": [250, 500, 1000], **MODEL}
    metadata["tokenizer"] = metadata.pop("pretrained")
    tasks = TaskManager(include_defaults=False, metadata=metadata)
    found = simple_evaluate(
        Reader(), tasks=["nolima_long"], task_manager=tasks, bootstrap_iters=0, log_samples=log_samples
    )
    row = found["results"]["nolima_long"]
    assert (row["base_score,none"], row["effective_length,none"]) == (1, 500)
    assert row["acc,none"] == pytest.approx(2 / 3)
    assert found["groups"]["nolima_long"]["base_score,none"] == 1
    assert found["higher_is_better"]["nolima_long"]["base_score"] is True
    assert ("samples" in found) == log_samples
    assert found["n-samples"]["nolima_long_500"]["effective"] == 4


def test_the_demo_model_runs_it(data):
    metadata = {"data": data, "num_samples": 1, "depths": 2, "lengths": [300]}
    found = simple_evaluate("mesa-hf", {}, ["nolima_long"], metadata=metadata, bootstrap_iters=0)
    assert 0 <= found["results"]["nolima_long_300"]["acc,none"] <= 1
    assert "base_score,none" not in found["results"]["nolima_long"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"needle": "A hen."}, "a needle must name {CHAR}"),
        ({"tests": None}, "is no needle set of NoLiMa's form"),
        ({"task_template": "{haystack}"}, "a task_template must hold {haystack} and {question}"),
        ({"system_prompt": "Be kind."}, "there is no system prompt"),
        ({"distractors": {"onehop": "x"}}, "distractors are not supported"),
    ],
)
def test_needle_sets_of_another_form_are_refused(tmp_path, change, message):
    with pytest.raises(UsageError, match=f"^nolima_long: .*{re.escape(message)}") as caught:
        docs(saved(tmp_path, [EXPERIMENT | change]))
    assert "\n" not in str(caught.value)


def test_a_set_without_a_field_names_it(tmp_path):
    lacking = {name: value for name, value in EXPERIMENT.items() if name != "questions"}
    with pytest.raises(UsageError, match="it lacks 'questions'$"):
        docs(saved(tmp_path, [lacking]))
    assert read_needle_set(saved(tmp_path / "good", [EXPERIMENT]), "needle_set") == NeedleSet(
        tuple(
            Needle(f"0901_{test}_{kind}", f"{{CHAR}} keeps a {thing} in the yard.", question, TEMPLATE, tuple(NAMES))
            for kind, asked in (
                ("onehop", {"T01": "a bird", "T02": "a horse"}),
                ("twohop", {"T01": "something that lays eggs", "T02": "something with hooves"}),
            )
            for test, thing in (("T01", "hen"), ("T02", "mare"))
            for question in [f"Who owns {asked[test]}?"]
        ),
        tuple(HAYSTACKS.items()),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"needles": "needle_set_hrad"},
            "unknown nolima_long needles 'needle_set_hrad'; did you mean 'needle_set_hard'",
        ),
        ({"needle": "needle_set"}, "did you mean 'needles'?"),
        ({"depths": 0}, "depths must be a whole number of at least 1; found 0"),
        ({"data": ""}, "data must be a string; found ''"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        questions.check_options(options)


@pytest.mark.parametrize(
    ("name", "message"), [("./nowhere", "there is no folder"), ("owner/name", "cannot load data 'owner/name'")]
)
def test_data_that_are_not_there(name, message):
    with pytest.raises(UsageError, match=f"^nolima_long: {message}") as caught:
        docs(name)
    assert "\n" not in str(caught.value)


def test_impossible_lengths(data, tmp_path):
    with pytest.raises(UsageError, match="a length of 20 tokens is too short for needle and question"):
        docs(data, 20)
    with pytest.raises(UsageError, match="haystack 'book_[12]' has 6300 words, too few for an excerpt of"):
        docs(data, 100_000)
    (tmp_path / "haystack" / "rand_shuffle" / "book_1.txt").unlink()
    (tmp_path / "haystack" / "rand_shuffle" / "book_2.txt").unlink()
    with pytest.raises(UsageError, match=r"must hold needlesets/needle_set\.json and haystack/rand_shuffle/\*\.txt"):
        docs(data)
