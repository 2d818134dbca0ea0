"""Hide NoLiMa's needles in its haystacks at a given length in tokens, and score the answers."""

import random
import re
from bisect import bisect_left
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from mesa_lm.errors import UsageError
from mesa_lm.harness.task_options import COUNT, TEXT, WHOLE_NUMBER, OptionRules, check_task_options
from mesa_lm.harness.tokenizing import task_encoding
from mesa_lm.tasks.fitting import most_that_fit
from mesa_lm.tasks.nolima_long.needle_set import CHARACTER, Needle, NeedleSet, read_needle_set

SETS = ("needle_set", "needle_set_ONLYDirect", "needle_set_hard")
RULES: OptionRules = {"num_samples": COUNT, "depths": COUNT, "seed": WHOLE_NUMBER, "data": TEXT, "needles": SETS}
# Called with the user's metadata before anything is loaded; the README describes the options.
check_options = partial(check_task_options, "nolima_long", RULES)


class Haystack(NamedTuple):
    """A text to hide needles in.

    Attributes:
        name: Of its file.
        words: With the space after each.
        line_starts: Which words begin a line, ascending, the end of the text among them.
    """

    name: str
    words: tuple[str, ...]
    line_starts: tuple[int, ...]


class HiddenNeedle(NamedTuple):
    """Where a needle is hidden, and whom it names: the same for every model, method and length."""

    needle: Needle
    haystack: Haystack
    depth: float  # share of the words before it, 0 to 1
    character: str

    def excerpt(self, words: int) -> str:
        """Return so many words of the haystack with the needle at the end of a line among them.

        It is the first line that has enough words before it, so that the excerpt begins near the beginning of the
        haystack, and the needle stands at exactly its depth.

        Raises:
            UsageError: The haystack is too short.
        """
        before = round(self.depth * words)
        lines = self.haystack.line_starts
        line = bisect_left(lines, before)
        place = lines[line] if line < len(lines) else len(self.haystack.words) + 1
        end = place + words - before
        if end > len(self.haystack.words):
            raise UsageError(
                f"nolima_long: haystack {self.haystack.name!r} has {len(self.haystack.words)} words, too few for an "
                f"excerpt of {words} around a needle at depth {self.depth:.2f}; lower lengths"
            )
        start = "".join(self.haystack.words[place - before : place]).rstrip("\n")
        needle = self.needle.text.replace(CHARACTER, self.character)
        return f"{start}{' ' if start else ''}{needle}\n{''.join(self.haystack.words[place:end])}"

    def prompt(self, words: int) -> str:
        """Return the prompt around an excerpt of so many words."""
        question = self.needle.question.replace(CHARACTER, self.character)
        # One after the other would replace within a haystack, too.
        parts = {"{haystack}": self.excerpt(words), "{question}": question}
        return re.sub(r"\{(?:haystack|question)\}", lambda field: parts[field.group()], self.needle.template)


def nolima_dataset(
    *, length: int, num_samples: int, depths: int, data: str, needles: str, seed: int, **model_args: Any
) -> dict[str, Dataset]:
    """Build the questions of one length: as many for each pair of needle and question, which take turns.

    Args:
        length: Tokens of the whole prompt as lm-eval feeds it, special tokens included. A prompt is at most so long,
            and about one word shorter at most.
        num_samples: Questions of each pair, at most the number of haystacks times that of depths.
        depths: Evenly spaced depths that needles stand at.
        data: A folder, or a data set on the hub.
        needles: Name of the needle set.
        seed: Of haystack, depth and name of each question.
        **model_args: The arguments of the model that name its tokenizer, and others.

    Returns:
        A split `test` with the columns prompt, answer, needle (name of the pair), haystack, depth, length (as asked)
        and tokens (as counted).

    Raises:
        UsageError: An option is wrong, the data cannot be read, or the length is too short or too long for them.
        ModelError: There is no such tokenizer, or it cannot be loaded.
    """
    given = {"num_samples": num_samples, "depths": depths, "data": data, "needles": needles, "seed": seed}
    check_options(model_args | given)
    count_tokens = task_encoding(model_args).count_prompt
    docs = []
    for placement in hide_needles(_needle_set(data, needles), num_samples, depths, seed):
        least = count_tokens(placement.prompt(0))
        if least > length:
            raise UsageError(
                f"nolima_long: a length of {length} tokens is too short for needle and question; with this tokenizer "
                f"it must be at least about {least}"
            )
        text = placement.prompt(most_that_fit(placement.prompt, length, count_tokens, least=0, most=length))
        docs.append(
            {
                "prompt": text,
                "answer": placement.character,
                "needle": placement.needle.name,
                "haystack": placement.haystack.name,
                "depth": placement.depth,
                "length": length,
                "tokens": count_tokens(text),
            }
        )
    return {"test": Dataset.from_list(docs)}


def hide_needles(needle_set: NeedleSet, num_samples: int, depths: int, seed: int) -> list[HiddenNeedle]:
    """Draw where each needle is hidden, and whom it names; all depths in all haystacks where so many are asked for.

    Args:
        needle_set: Needles and haystacks.
        num_samples: Placements of each needle.
        depths: How many there are.
        seed: Any whole number.

    Returns:
        Placements; the needles take turns.

    Raises:
        UsageError: There are fewer places.
    """
    haystacks = [_haystack(name, text) for name, text in needle_set.haystacks]
    places = [(haystack, i / max(1, depths - 1)) for haystack in haystacks for i in range(depths)]
    if num_samples > len(places):
        raise UsageError(
            f"nolima_long: num_samples must be at most {len(places)}, {depths} depths in {len(haystacks)} haystacks; "
            f"found {num_samples}"
        )
    drawn = []
    for needle in needle_set.needles:
        rng = random.Random(f"nolima_long {seed} {needle.name}")
        chosen = rng.sample(places, num_samples)
        drawn.append([HiddenNeedle(needle, *place, rng.choice(needle.characters)) for place in chosen])
    return [placements[i] for i in range(num_samples) for placements in drawn]


def score(doc: Mapping[str, Any], results: list[str]) -> dict[str, float]:
    """Compare an answer with the name.

    Args:
        doc: The question.
        results: The generated text.

    Returns:
        `acc`: the text contains the name, as the authors score. `exact_match`: the text, without surrounding space and
        without a final full stop, is the name.
    """
    answer, name = results[0], doc["answer"]
    return {"acc": float(name in answer), "exact_match": float(answer.strip().removesuffix(".") == name)}


def _needle_set(data: str, name: str) -> NeedleSet:
    folder = Path(data).expanduser()
    state = tuple((str(file), file.stat().st_mtime_ns) for file in sorted(folder.rglob("*")) if file.is_file())
    return _read_once(data, name, state)


@lru_cache(maxsize=2)
def _read_once(data: str, name: str, state: tuple[Any, ...]) -> NeedleSet:
    return read_needle_set(data, name)


@lru_cache(maxsize=16)
def _haystack(name: str, text: str) -> Haystack:
    words = tuple(re.findall(r"\S+\s*", text))
    ends = (i for i, word in enumerate(words, start=1) if "\n" in word or i == len(words))
    return Haystack(name, words, (0, *ends))
