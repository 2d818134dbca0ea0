"""SQuAD's metrics, which some of lm-eval's tasks import from a module that transformers 5 no longer has.

Source: the evaluation script of SQuAD 2.0, https://rajpurkar.github.io/SQuAD-explorer/.
"""

import re
import string
from collections import Counter

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Return an answer in lower case, without punctuation, articles and superfluous spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def compute_exact(gold: str, answer: str) -> int:
    """Return 1 if two answers are the same once normalised, else 0."""
    return int(normalize_answer(gold) == normalize_answer(answer))


def compute_f1(gold: str, answer: str) -> float:
    """Return the F1 score of an answer's words, once normalised; without words on either side 1 if both have none."""
    wanted, given = normalize_answer(gold).split(), normalize_answer(answer).split()
    if not wanted or not given:
        return float(wanted == given)
    common = (Counter(wanted) & Counter(given)).total()
    # The harmonic mean of common / given and common / wanted.
    return 2 * common / (len(wanted) + len(given))
