"""passkey_long: prompts of an exact length under any tokenizer, its options and its scores."""

import inspect
import re
from collections import Counter as Tally
from dataclasses import fields

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import make_table
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mesa_lm.errors import MesaError, UsageError
from mesa_lm.harness import tokenizing
from mesa_lm.harness.task_manager import TaskManager
from mesa_lm.methods.registry import available_methods
from mesa_lm.tasks.passkey_long import questions
from mesa_lm.tasks.passkey_long.texts import DESCRIPTION, FILLER, MAX_KEY, NEEDLE, PROMPTS, QUESTION

NUMBER = r"\d+"
SPECIAL = ["<s>", "</s>", "<unk>"]
CORPUS = [" ".join([DESCRIPTION, *[FILLER] * 3, NEEDLE.format(key=k), FILLER]) for k in range(1000, 9_000_000, 250_007)]
CHAT_TEMPLATE = "<s>{% for m in messages %}[{{ m.role }}] {{ m.content | trim }} {% endfor %}[bot]"


def wrapped(tokenizer: Tokenizer, single: str) -> PreTrainedTokenizerFast:
    ids = [(token, tokenizer.token_to_id(token)) for token in SPECIAL]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2 and Llama 3: words with their leading space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL))
    return wrapped(tokenizer, "<s> $A")


def unigram() -> PreTrainedTokenizerFast:
    """As T5: special token at the end."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>")
    )
    return wrapped(tokenizer, "$A </s>")


def unsplit() -> PreTrainedTokenizerFast:
    """Tokens that cross words and sentences."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>")
    )
    return wrapped(tokenizer, "<s> $A")


def memorising() -> PreTrainedTokenizerFast:
    """Tokens of whole fillers, so that one filler has no fixed cost."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "_")
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=150, special_tokens=SPECIAL))
    return wrapped(tokenizer, "<s> $A")


REGULAR = {"byte_level": byte_level, "unigram": unigram, "unsplit": unsplit}
TOKENIZERS = {name: make() for name, make in {**REGULAR, "memorising": memorising}.items()}
TOKENIZER = TOKENIZERS["byte_level"]


def docs(length: int = 700, **options: object) -> list[dict]:
    settings = {"num_samples": 11, "depths": None, "prompt": "plain", "seed": 0, "tokenizer": TOKENIZER}
    return list(questions.passkey_dataset(length=length, **{**settings, **options})["test"])


def count(text: str, tokenizer: PreTrainedTokenizerFast = TOKENIZER, **options: object) -> int:
    return len(tokenizer(text, **options)["input_ids"])


@pytest.mark.parametrize("length", [359, 701, 2003])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", REGULAR)
def test_prompts_are_as_long_as_asked(name: str, prompt: str, length: int) -> None:
    tokenizer = TOKENIZERS[name]
    for doc in docs(length, tokenizer=tokenizer, prompt=prompt):
        assert doc["tokens"] == count(doc["prompt"], tokenizer) <= length
        assert count(doc["prompt"].replace(DESCRIPTION, f"{DESCRIPTION} {FILLER}"), tokenizer) > length


@pytest.mark.parametrize("length", [150, 211])
def test_a_tokenizer_without_a_fixed_cost_per_filler(length: int) -> None:
    for doc in docs(length, tokenizer=TOKENIZERS["memorising"], num_samples=3):
        assert doc["tokens"] == count(doc["prompt"], TOKENIZERS["memorising"]) <= length


def test_a_wrong_cost_per_filler_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def tokens_beyond(text: str) -> int:
        """Count words; far into a text, where no short one reaches, each is two tokens."""
        words = len(text.split())
        return words + max(0, words - 500)

    monkeypatch.setattr(tokenizing, "token_counter", lambda *_: tokens_beyond)
    for doc in docs(1501):
        assert 1501 - 40 < doc["tokens"] == tokens_beyond(doc["prompt"]) <= 1501


@pytest.mark.parametrize("prompt", PROMPTS)
def test_layout(prompt: str) -> None:
    prefix, suffix = PROMPTS[prompt]
    for doc in docs(prompt=prompt):
        text = doc["prompt"]
        assert text.startswith(prefix + DESCRIPTION + " ")
        assert text.endswith(suffix)
        pieces = text.removeprefix(prefix + DESCRIPTION).removesuffix(suffix)
        before, after = pieces.split(" " + NEEDLE.format(key=doc["key"]))
        fillers = before.count(FILLER) + after.count(FILLER)
        assert before + after == f" {FILLER}" * fillers
        assert doc["depth"] == before.count(FILLER) / fillers
        assert doc["length"] == 700


def test_same_questions_for_every_tokenizer_and_prompt() -> None:
    ours = docs(2003)
    for tokenizer, prompt in ((TOKENIZERS["unigram"], "plain"), (TOKENIZER, "vicuna")):
        for doc, other in zip(ours, docs(2003, tokenizer=tokenizer, prompt=prompt), strict=True):
            assert doc["key"] == other["key"]
            assert abs(doc["depth"] - other["depth"]) < 0.1
    assert docs(2003) == ours
    assert docs(2003, num_samples=5) == ours[:5]


def test_seed_and_length_change_the_questions() -> None:
    keys = [tuple(doc["key"] for doc in docs(length, seed=seed)) for length in (700, 701) for seed in (0, 1, -1)]
    assert len(set(keys)) == len(keys)


def test_keys_and_depths_are_uniform() -> None:
    drawn = questions.draw_questions(512, 20_000, None, 0)
    assert all(1 <= question.key <= MAX_KEY for question in drawn)
    tenths = Tally(question.key * 10 // (MAX_KEY + 1) for question in drawn)
    places = Tally(questions.Prompt(question, 9).before for question in drawn)
    for tally in (tenths, places):
        assert sorted(tally) == list(range(10))
        assert all(1850 < n < 2150 for n in tally.values())


@pytest.mark.parametrize(
    ("depths", "expected"),
    [(5, [0, 0.25, 0.5, 0.75, 1, 0]), (2, [0, 1, 0]), (1, [0.5, 0.5]), ([0.9, 0], [0.9, 0, 0.9]), ([1.0], [1, 1])],
)
def test_depths_are_cycled(depths: object, expected: list[float]) -> None:
    found = [doc["depth"] for doc in docs(4001, depths=depths, num_samples=len(expected))]
    assert found == pytest.approx(expected, abs=0.01)


def test_chat_prompt_is_the_models_own_and_has_one_bos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TOKENIZER, "chat_template", CHAT_TEMPLATE)
    for doc in docs(prompt="chat"):
        assert doc["prompt"].startswith(f"<s>[user] {DESCRIPTION}")
        assert doc["prompt"].endswith(f"\n\n{QUESTION} [bot]")
        tokens = TOKENIZER(doc["prompt"], add_special_tokens=False)["input_ids"]
        assert doc["tokens"] == len(tokens) <= 700
        assert tokens.count(TOKENIZER.bos_token_id) == 1


def test_chat_prompt_needs_a_template() -> None:
    with pytest.raises(UsageError, match="no chat template"):
        docs(prompt="chat")


def test_add_bos_token_is_honoured() -> None:
    for doc in docs(add_bos_token=False):
        assert doc["tokens"] == count(doc["prompt"], add_special_tokens=False)


def test_tokenizer_comes_from_the_models_folder(tmp_path: object) -> None:
    TOKENIZERS["unigram"].save_pretrained(tmp_path)
    for name in ("pretrained", "tokenizer", "model"):
        found = docs(**{"tokenizer": None, name: str(tmp_path)})
        assert found == docs(tokenizer=TOKENIZERS["unigram"])
    with pytest.raises(MesaError, match="cannot load the tokenizer '/no/such/folder'"):
        docs(tokenizer="/no/such/folder")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_too_short_a_length_names_the_least(prompt: str) -> None:
    with pytest.raises(UsageError, match=r"5 tokens is too short .* at least \d+$") as caught:
        docs(5, prompt=prompt)
    least = int(re.findall(r"\d+", str(caught.value))[-1])
    assert [doc["depth"] for doc in docs(least, prompt=prompt)] == [0.0] * 11
    with pytest.raises(UsageError, match="too short"):
        docs(least - 10, prompt=prompt)


def test_a_hundred_long_prompts_tokenize_less_than_three_texts() -> None:
    seen = []

    def count_words(text: str) -> int:
        seen.append(len(text))
        return len(text.split())

    counter = questions.PromptCounter(count_words, *PROMPTS["plain"])
    drawn = questions.draw_questions(131_072, 100, None, 0)
    prompts = [counter.longest(question, 131_072) for question in drawn]
    assert all(131_072 - 19 < counter.count(prompt) <= 131_072 for prompt in prompts)
    assert sum(seen) < 3 * 131_072 * len(FILLER) / 19


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_sample": 5}, "unknown passkey_long option 'num_sample'; did you mean 'num_samples'?"),
        ({"lenghts": [5]}, "did you mean 'lengths'?"),
        ({"length": 5}, "did you mean 'lengths'?"),
        ({"depth": 5}, "did you mean 'depths'?"),
        ({"promt": "plain"}, "did you mean 'prompt'?"),
        ({"seeds": 5}, "did you mean 'seed'?"),
        ({"num_samples": 0}, "num_samples must be a whole number of at least 1; found 0"),
        ({"num_samples": "5"}, "found '5'"),
        ({"num_samples": True}, "found True"),
        ({"num_samples": None}, "found None"),
        ({"seed": 0.5}, "seed must be a whole number; found 0.5"),
        ({"depths": 0}, "depths must be null, a whole number from 1 to 1001, or a list of shares from 0 to 1; found 0"),
        ({"depths": []}, "found []"),
        ({"depths": [0.5, 1.1]}, "found [0.5, 1.1]"),
        ({"depths": "5"}, "found '5'"),
        ({"prompt": "enhnced"}, "unknown passkey_long prompt 'enhnced'; did you mean 'enhanced'?"),
        ({"prompt": ["plain"]}, "unknown passkey_long prompt"),
        ({"prompt": None}, "unknown passkey_long prompt"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        questions.check_options(options)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="passkey_long"):
        TaskManager(include_defaults=False, metadata=options).match_tasks(["passkey_long_4k"])


def test_arguments_of_models_are_no_misspelt_options() -> None:
    names = [*inspect.signature(HFLM.__init__).parameters, "max_seq_lengths", "max_model_len"]
    names += [field.name for method in available_methods().values() for field in fields(method)]
    questions.check_options(dict.fromkeys(names, 1))
    questions.check_options({"lengths": [5], "num_samples": 5, "depths": [0, 1], "prompt": "chat", "seed": -1})


@pytest.mark.parametrize(
    ("answer", "acc", "exact_match"),
    [
        (" 1234567", 1, 1),
        ("1234567.\n", 1, 1),
        ("01234567", 1, 0),
        ("The pass key is 1234567.", 1, 0),
        ("1234567. Remember it. 7654321", 1, 0),
        ("7654321 or 1234567", 0, 0),
        ("12345678", 0, 0),
        ("1,234,567", 0, 0),
        ("none", 0, 0),
        ("", 0, 0),
    ],
)
def test_score(answer: str, acc: float, exact_match: float) -> None:
    assert questions.score({"key": 1234567}, [answer]) == {"acc": acc, "exact_match": exact_match}


class Reader(LM):
    """Answers with the first number of a prompt of at most 400 tokens, and with nothing above."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[str] = []

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        self.prompts = [request.args[0] for request in requests]
        assert all(not r.args[1]["do_sample"] and r.args[1]["max_gen_toks"] == 32 for r in requests)
        return [f" {re.findall(NUMBER, p)[0]}." if count(p) <= 400 else "" for p in self.prompts]

    def loglikelihood(self, requests: list) -> list:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list) -> list:
        raise NotImplementedError


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_run_by_lm_eval() -> None:
    metadata = {"tokenizer": TOKENIZER, "lengths": [1024, 300, 400], "num_samples": 7}
    reader = Reader()
    tasks = TaskManager(include_defaults=False, metadata=metadata)
    results = simple_evaluate(reader, tasks=["passkey_long"], task_manager=tasks, limit=5, bootstrap_iters=10)
    found = {name: (row["acc,none"], row["exact_match,none"]) for name, row in results["results"].items()}
    assert found == {
        "passkey_long": (pytest.approx(2 / 3), pytest.approx(2 / 3)),
        "passkey_long_300": (1, 1),
        "passkey_long_400": (1, 1),
        "passkey_long_1k": (0, 0),
    }
    assert all("acc_stderr,none" in row for row in results["results"].values())
    assert results["n-samples"]["passkey_long_1k"] == {"original": 7, "effective": 5}
    rows = re.findall(r"passkey_long\w*", make_table(results))
    assert rows == ["passkey_long", "passkey_long_300", "passkey_long_400", "passkey_long_1k"]
    asked = [sample["doc"]["prompt"] for name in rows[1:] for sample in results["samples"][name]]
    assert reader.prompts == asked
