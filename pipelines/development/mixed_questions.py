"""Questions of several kinds for the training of a demo model that can do more; no needle is torn or cut off."""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from mesa_lm.pipelines.development.passkey_questions import Questions
from mesa_lm.tasks.kv_long import texts as kv_texts
from mesa_lm.tasks.kv_long.pairs import COLUMNS, WORDS
from mesa_lm.tasks.longeval_lines import texts as lines_texts
from mesa_lm.tasks.multikey_long import keys
from mesa_lm.tasks.passkey_long.texts import DESCRIPTION, NEEDLE, PROMPTS

# Share of each kind among the rows.
SHARES = {"passkey": 0.4, "lines": 0.2, "pair": 0.25, "pairs": 0.15}
MOST_KEYS = 4  # that a question asks for
# What the texts of pairs and lines are made of, beside the words in them.
PROSE = (
    kv_texts.HEAD,
    kv_texts.QUESTION + kv_texts.ENDINGS["answer"],
    keys.QUESTION + keys.ENDINGS["answer"],
    lines_texts.HEAD,
    lines_texts.LINE,
    lines_texts.QUESTION + lines_texts.ENDINGS["answer"],
    " ".join(WORDS),
)


class Lines(NamedTuple):
    """A list of lines and a question, as text.

    Attributes:
        head: What comes before the lines.
        lines: All there are; a row has the first ones, shuffled, that fit.
        least: How many of them there must be, those asked for among them.
        question: What follows.
        answer: Its answer.
    """

    head: str
    lines: Sequence[str]
    least: int
    question: str
    answer: str


class MixedQuestions(Questions):
    """Passkeys, lines by name, and one or several values by key, in the texts of the tasks."""

    def row(self, length: int) -> tuple[list[int], list[int]]:
        """Return a prompt and its answer, together at most `length` tokens, and whole.

        Raises:
            ValueError: Not even a passkey fits.
        """
        (kind,) = self.rng.choices([*SHARES], [*SHARES.values()])
        made = {"lines": self.named_lines, "pair": self.pairs, "pairs": self.pairs}
        if kind in made:
            fitted = self.fitted(made[kind](1 if kind == "pair" else self.rng.randint(2, MOST_KEYS)), length)
            if fitted is not None:
                return fitted
        return self.passkey_row(length)

    def passkey_row(self, length: int) -> tuple[list[int], list[int]]:
        """Return a passkey question; filler is cut, and nothing else."""
        key = self.passkey()
        prefix, suffix = PROMPTS[self.rng.choice(("plain", "plain", "enhanced", "enhanced-answer"))]
        head, tail = [0, *self.encode(prefix + DESCRIPTION)], self.encode(suffix)
        needle, answer = self.encode(" " + NEEDLE.format(key=key)), [*self.encode(f" {key}."), 1]
        room = length - sum(map(len, (head, tail, needle, answer)))
        if room < 0:
            raise ValueError(f"a passkey question takes {length - room} tokens, and there are {length}")
        filler = self.filler(room)
        place = self.rng.randint(0, len(filler))
        before, after = (list(chain.from_iterable(pieces)) for pieces in (filler[:place], filler[place:]))
        surplus = len(before) + len(after) - room
        cut = min(surplus, len(after))
        return head + before[surplus - cut :] + needle + after[: len(after) - cut] + tail, answer

    def named_lines(self, asked: int) -> Lines:
        """Return LongChat's lines; one of them is asked for, whatever is asked."""
        adjectives, nouns = lines_texts.ADJECTIVES.split(), lines_texts.NOUNS.split()
        names = [f"{self.rng.choice(adjectives)}-{self.rng.choice(nouns)}" for _ in range(60)]
        values = {name: self.rng.randint(1, lines_texts.MAX_VALUE) for name in names}
        lines = [lines_texts.LINE.format(name=name, value=value) for name, value in values.items()]
        question = (lines_texts.QUESTION + lines_texts.ENDINGS["answer"]).format(name=names[0])
        return Lines(lines_texts.HEAD, lines, 2, question, f"{values[names[0]]}>.")

    def pairs(self, asked: int) -> Lines:
        """Return pairs whose keys are cells of a grid of words, as kv_long's, and so many of them to ask for."""
        rows = self.rng.randint(2, 8)
        words = self.rng.sample(WORDS, rows + COLUMNS)
        names = [f"{row}-{column}" for row in words[COLUMNS:] for column in words[:COLUMNS]]
        values = self.rng.sample(range(kv_texts.VALUES[0], kv_texts.VALUES[1] + 1), len(names))
        named = self.rng.sample(range(2 * COLUMNS), asked)
        order = [*named, *(i for i in range(len(names)) if i not in named)]
        lines = [kv_texts.LINE.format(key=names[i], value=values[i]) for i in order]
        asked_names = [names[i] for i in named]
        answer = ", ".join(str(values[i]) for i in named)
        if asked == 1:
            question = (kv_texts.QUESTION + kv_texts.ENDINGS["answer"]).format(key=asked_names[0])
        else:
            listed = f"{', '.join(asked_names[:-1])} and {asked_names[-1]}"
            question = (keys.QUESTION + keys.ENDINGS["answer"]).format(keys=listed)
        return Lines(kv_texts.HEAD, lines, max(2, asked), question, f" {answer}.")

    def fitted(self, lines: Lines, length: int) -> tuple[list[int], list[int]] | None:
        """Return the question with as many lines as fit, in random order; None where too few do."""
        head, question = [0, *self.encode(lines.head)], self.encode(lines.question)
        answer = [*self.encode(lines.answer), 1]
        room = length - len(head) - len(question) - len(answer)
        chosen: list[list[int]] = []
        for line in map(self.encode, lines.lines):
            room -= len(line)
            if room < 0:
                break
            chosen.append(line)
        if len(chosen) < lines.least:
            return None
        self.rng.shuffle(chosen)
        return [*head, *chain.from_iterable(chosen), *question], answer
