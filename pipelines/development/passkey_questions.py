"""Passkey questions for the training of the demo model."""

import random
from abc import ABC, abstractmethod

import torch
from transformers import PreTrainedTokenizerFast

from mesa_lm.tasks.passkey_long.texts import DESCRIPTION, FILLER, MAX_KEY, NEEDLE, PROMPTS

SENTENCES = (
    "The old clock on the wall struck nine.",
    "A small boat drifted along the quiet river.",
    "Nobody had opened that window for years.",
    "Rain fell softly on the roofs of the town.",
    "The baker counted his coins twice before noon.",
    "Two birds argued over a piece of bread.",
    "She wrote the address on the back of a map.",
    "The train was late again and no one minded.",
    "A dog slept under the table in the garden.",
    "They walked home slowly through the long grass.",
)


class Questions(ABC):
    """Random prompts with their answers, as token ids of one common length."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, texts: list[str], rng: random.Random, few_digits: float
    ) -> None:
        """Prepare.

        Args:
            tokenizer: Of the model.
            texts: Source text for irrelevant pieces.
            rng: What everything is drawn from.
            few_digits: Share of passkeys made of two to four different digits.
        """
        self.tokenizer = tokenizer
        self.source = "\n".join(texts)
        self.rng = rng
        self.few_digits = few_digits

    @abstractmethod
    def row(self, length: int) -> tuple[list[int], list[int]]:
        """Return a prompt, which begins with BOS, and its answer, together about `length` tokens."""

    def encode(self, text: str) -> list[int]:
        """Return token ids without BOS."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def filler(self, length: int) -> list[list[int]]:
        """Return pieces of irrelevant text of one random kind, `length` tokens or a little more in all."""
        kind = self.rng.random()
        pieces: list[list[int]] = []
        total = 0
        while total < length:
            if kind < 0.5:
                text = FILLER
            elif kind < 0.75:
                text = self.rng.choice(SENTENCES)
            else:
                start = self.rng.randrange(len(self.source) - 200)
                text = self.source[start : start + self.rng.randrange(20, 200)]
            pieces.append(self.encode(" " + text))
            total += len(pieces[-1])
        return pieces

    def passkey(self) -> str:
        """Return a random key."""
        if self.few_digits and self.rng.random() < self.few_digits:
            digits = self.rng.sample("0123456789", self.rng.randint(2, 4))
            return self.rng.choice("123456789") + "".join(self.rng.choices(digits, k=self.rng.randint(4, 7)))
        if self.rng.random() < 0.5:
            return str(self.rng.randint(1, MAX_KEY))
        return str(self.rng.randrange(10 ** self.rng.randrange(1, 7)))

    def batch(self, length: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Return ids (rows, length), labels and the largest answer length; rows too short are padded on the left."""
        ids, labels, longest = [], [], 0
        for _ in range(rows):
            prompt, answer = self.row(length)
            prompt = [prompt[0], *prompt[1:][-(length - len(answer) - 1) :]]
            prompt = [1] * (length - len(prompt) - len(answer)) + prompt
            ids.append(prompt + answer)
            labels.append([-100] * len(prompt) + answer)
            longest = max(longest, len(answer))
        return torch.tensor(ids), torch.tensor(labels), longest


class Passkeys(Questions):
    """Random passkey prompts with their answers, as token ids of one common length; half of the needles are torn."""

    def needle(self, key: str) -> list[int]:
        """Return the key sentence; half of the time it is torn, but never within both mentions of the key.

        A torn needle has foreign text inside or lacks one end: chunked attention may show it so.
        """
        before, between, _ = NEEDLE.split("{key}")
        ids = self.encode(" " + NEEDLE.format(key=key))
        first_key = len(self.encode(" " + before.strip()))
        first_key_end = len(self.encode(" " + before + key))
        second_key = len(self.encode(" " + before + key + between.rstrip()))
        choice = self.rng.random()
        if choice < 0.25:  # inside a mention of the key
            start = self.rng.choice((first_key, second_key))
            return self.tear(ids, start + self.rng.randint(0, len(key)))
        if choice < 0.35:
            return self.tear(ids, self.rng.randrange(1, len(ids)))
        if choice < 0.42:
            return ids[self.rng.randrange(0, second_key) :]
        if choice < 0.5:
            return ids[: self.rng.randrange(first_key_end, len(ids))]
        return ids

    def tear(self, ids: list[int], cut: int) -> list[int]:
        """Return tokens with foreign text put in before the one at `cut`."""
        length = self.rng.randrange(1, 40)
        if self.rng.random() < 0.5:
            foreign = self.encode(DESCRIPTION)[:length]
        else:
            foreign = [token for piece in self.filler(length) for token in piece]
        return ids[:cut] + foreign + ids[cut:]

    def row(self, length: int) -> tuple[list[int], list[int]]:
        """Return a prompt and its answer, together exactly `length` tokens."""
        key = self.passkey()
        prefix, suffix = PROMPTS[self.rng.choice(("plain", "plain", "enhanced", "enhanced-answer"))]
        head = [0, *self.encode(prefix + DESCRIPTION)]
        tail = self.encode(suffix)
        answer = [*self.encode(f" {key}."), 1]
        needle = self.needle(key)
        room = length - len(head) - len(tail) - len(answer) - len(needle)
        pieces = self.filler(max(room, 0))
        place = self.rng.randint(0, len(pieces))
        before = [token for piece in pieces[:place] for token in piece]
        after = [token for piece in pieces[place:] for token in piece]
        surplus = len(before) + len(after) - max(room, 0)
        # Cut the surplus off the filler, where it does not touch the needle's neighbourhood if possible.
        after, surplus = after[: max(0, len(after) - surplus)], max(0, surplus - len(after))
        before = before[surplus:]
        return head + before + needle + after + tail, answer
