"""Train the demo model that ships with the package.

    python -m mesa_lm.pipelines.development.train_demo_model OUT

A one-million-parameter Llama with a training length of 512 tokens. Four fifths of each step's tokens are
passkey prompts, one fifth is text of Python's standard library; everything is made here from a fixed seed.
"""

import json
import math
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mesa_lm.tasks.long_ppl.embedded_text import standard_library
from mesa_lm.tasks.passkey_long.texts import DESCRIPTION, FILLER, MAX_KEY, NEEDLE, PROMPTS

TRAIN_LENGTH = 512
VOCAB_SIZE = 1024
STEP_TOKENS = 8192  # per optimiser step, passkey and text together
BOS, EOS = "<s>", "</s>"
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


def build_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE in which every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\d"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    affixes = [prefix + suffix for prefix, suffix in PROMPTS.values()]
    prose = [DESCRIPTION, FILLER, NEEDLE, *SENTENCES, *affixes]
    # Repeated, so that the passkey texts are short in tokens although the source text is far longer.
    tokenizer.train_from_iterator(texts + prose * 2000, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_max_length=int(1e30),
        clean_up_tokenization_spaces=False,
    )


def untrained_model() -> LlamaForCausalLM:
    """Create the untrained model."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=TRAIN_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config)


class Phase(NamedTuple):
    """A stretch of training with its own seed, optimiser and learning rate schedule."""

    steps: int
    peak_lr: float
    few_digits: float  # share of keys made of two to four different digits, which are hard to copy in order


PHASES = (Phase(5000, 2e-3, 0.0), Phase(1800, 1e-3, 0.6))


class Passkeys:
    """Random passkey prompts with their answers, as token ids of one common length."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, texts: list[str], rng: random.Random, few_digits: float
    ) -> None:
        self.tokenizer = tokenizer
        self.source = "\n".join(texts)
        self.rng = rng
        self.few_digits = few_digits

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
        if self.few_digits and self.rng.random() < self.few_digits:
            digits = self.rng.sample("0123456789", self.rng.randint(2, 4))
            key = self.rng.choice("123456789") + "".join(self.rng.choices(digits, k=self.rng.randint(4, 7)))
        elif self.rng.random() < 0.5:
            key = str(self.rng.randint(1, MAX_KEY))
        else:
            key = str(self.rng.randrange(10 ** self.rng.randrange(1, 7)))
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


def text_batch(stream: torch.Tensor, rows: int, rng: random.Random) -> torch.Tensor:
    """Return random windows of the training text, (rows, TRAIN_LENGTH), each with a leading BOS."""
    starts = [rng.randrange(len(stream) - TRAIN_LENGTH) for _ in range(rows)]
    windows = torch.stack([stream[start : start + TRAIN_LENGTH - 1] for start in starts])
    return torch.cat([torch.zeros(rows, 1, dtype=torch.long), windows], dim=1)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then cosine decay to a tenth of the peak."""
    if step < 100:
        return peak * (step + 1) / 100
    progress = (step - 100) / max(1, steps - 100)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def train_phase(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
    phase: Phase,
    seed: int,
    report: Callable[[dict[str, float]], None],
) -> None:
    """Train a model in place.

    Args:
        model: On the device to train on.
        tokenizer: Its tokenizer.
        texts: The training part of the standard library.
        phase: How.
        seed: Of everything random in the phase.
        report: Called now and then with step, losses and accuracy.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    device = next(model.parameters()).device
    stream = torch.tensor([t for text in texts for t in [*tokenizer.encode(text, add_special_tokens=False), 1]])
    passkeys = Passkeys(tokenizer, texts, rng, phase.few_digits)
    optimizer = torch.optim.AdamW(model.parameters(), lr=phase.peak_lr, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(phase.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, phase.steps, phase.peak_lr)
        text = text_batch(stream, STEP_TOKENS // 5 // TRAIN_LENGTH, rng).to(device)
        length = rng.randint(TRAIN_LENGTH // 6, TRAIN_LENGTH)
        ids, labels, longest = passkeys.batch(length, STEP_TOKENS * 4 // 5 // length)
        ids, labels = ids.to(device), labels.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            text_logits = model(text).logits[:, :-1]
            key_logits = model(ids, logits_to_keep=longest + 1).logits[:, :-1]
        text_loss = cross_entropy(text_logits.float().flatten(0, 1), text[:, 1:].flatten())
        key_labels = labels[:, -longest:]
        key_loss = cross_entropy(key_logits.float().flatten(0, 1), key_labels.flatten())
        (text_loss + key_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == phase.steps - 1:
            hit = (key_logits.argmax(-1) == key_labels) | (key_labels == -100)
            report(
                {
                    "step": step,
                    "text_loss": round(text_loss.item(), 4),
                    "passkey_loss": round(key_loss.item(), 4),
                    "passkey_accuracy": round(hit.all(1).float().mean().item(), 4),
                }
            )


def train(
    out: Annotated[Path, typer.Argument(help="Folder for model, tokenizer and training log.")],
    seed: int = 0,
    threads: int = 2,
) -> None:
    """Train the demo model from scratch and save the mean of its weights after each phase."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    texts = standard_library(held_out=False)
    tokenizer = build_tokenizer(texts)
    model = untrained_model()
    torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    log: list[dict[str, float]] = []
    started = time.monotonic()

    def report(entry: dict[str, float], phase: int) -> None:
        log.append({"phase": phase, **entry, "seconds": round(time.monotonic() - started, 1)})
        print(json.dumps(log[-1]), flush=True)

    mean: dict[str, torch.Tensor] = {}
    for number, phase in enumerate(PHASES, start=1):
        train_phase(model, tokenizer, texts, phase, seed + number - 1, partial(report, phase=number))
        for name, parameter in model.named_parameters():
            mean[name] = mean.get(name, torch.zeros_like(parameter)) + parameter.detach() / len(PHASES)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(mean[name])
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "training_log.json").write_text(json.dumps(log, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(train)
