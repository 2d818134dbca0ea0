"""The mixture that a demo model can be trained on: every question is whole, and holds its answer."""

import random
import re
from collections import Counter

import pytest

from mesa_lm.pipelines.development import train_demo_model
from mesa_lm.pipelines.development.mixed_questions import SHARES, MixedQuestions
from mesa_lm.tasks.kv_long import texts as kv_texts
from mesa_lm.tasks.long_ppl.embedded_text import standard_library
from mesa_lm.tasks.longeval_lines import texts as lines_texts
from mesa_lm.tasks.passkey_long.texts import DESCRIPTION, NEEDLE

TEXTS = standard_library(held_out=False)[:20]


@pytest.fixture(scope="module")
def tokenizer():
    return train_demo_model.build_tokenizer(TEXTS, train_demo_model.RECIPES["mixed"])


def questions(tokenizer, seed=0, few_digits=0.0):
    return MixedQuestions(tokenizer, TEXTS, random.Random(seed), few_digits)


def kind_of(text):
    if text.startswith(lines_texts.HEAD):
        return "lines"
    if text.startswith(kv_texts.HEAD):
        return "pairs" if "What are the values" in text else "pair"
    assert DESCRIPTION in text
    return "passkey"


@pytest.mark.parametrize("length", [train_demo_model.RECIPES["mixed"].least, 256, 512])
def test_no_question_loses_its_needle(tokenizer, length):
    made = questions(tokenizer, few_digits=0.5)
    kinds = Counter()
    for _ in range(300):
        prompt, answer = made.row(length)
        assert len(prompt) + len(answer) <= length
        assert prompt[0] == 0 and answer[-1] == 1
        text, said = tokenizer.decode(prompt[1:]), tokenizer.decode(answer[:-1])
        kind = kind_of(text)
        kinds[kind] += 1
        numbers = re.findall(r"\d+", said)
        if kind == "passkey":
            assert text.count(NEEDLE.format(key=numbers[0])) == 1
        elif kind == "lines":
            name = re.search(r"in line (\S+) is <$", text)[1]
            assert text.count(f"line {name}: REGISTER_CONTENT is <{numbers[0]}>\n") == 1
            assert text.count(f"line {name}:") == 1
        else:
            asked = re.findall(r"[a-z]+-[a-z]+", text[text.rindex(" The value") :])
            listed = dict(re.findall(r"^([a-z]+-[a-z]+): (\d+)$", text, re.MULTILINE))
            assert [listed[key] for key in asked] == numbers
            assert (len(asked) == 1) == (kind == "pair")
    assert length < 512 or all(abs(kinds[kind] - 300 * share) < 40 for kind, share in SHARES.items())


def test_rows_of_a_batch_have_one_length_and_their_answers_at_the_end(tokenizer):
    ids, labels, longest = questions(tokenizer).batch(300, 9)
    assert ids.shape == labels.shape == (9, 300)
    for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
        answer = [token for token in label if token != -100]
        assert row[-len(answer) :] == label[-len(answer) :] == answer
        assert 0 < len(answer) <= longest
        assert row[0] in (0, 1)


def test_a_seed_makes_the_same_questions(tokenizer):
    first, second, other = (questions(tokenizer, seed).batch(300, 5)[0] for seed in (3, 3, 4))
    assert first.equal(second) and not first.equal(other)


def test_a_length_too_short_for_a_passkey_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="a passkey question takes .* tokens, and there are 40"):
        questions(tokenizer).row(40)
