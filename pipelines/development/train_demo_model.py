"""Train the demo model that ships with the package.

    python -m mesa_lm.pipelines.development.train_demo_model OUT

A one-million-parameter Llama with a training length of 512 tokens. Four fifths of each step's tokens are
questions, one fifth is text of Python's standard library; everything is made here from a fixed seed.
"""

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mesa_lm.errors import unknown_name
from mesa_lm.pipelines.development.mixed_questions import PROSE, MixedQuestions
from mesa_lm.pipelines.development.passkey_questions import SENTENCES, Passkeys, Questions
from mesa_lm.tasks.long_ppl.embedded_text import standard_library
from mesa_lm.tasks.passkey_long.texts import DESCRIPTION, FILLER, NEEDLE, PROMPTS

TRAIN_LENGTH = 512
VOCAB_SIZE = 1024
STEP_TOKENS = 8192  # per optimiser step, questions and text together
BOS, EOS = "<s>", "</s>"


def build_tokenizer(texts: list[str], recipe: "Recipe") -> PreTrainedTokenizerFast:
    """Train a byte-level BPE in which every digit is a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\d"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    affixes = [prefix + suffix for prefix, suffix in PROMPTS.values()]
    prose = [DESCRIPTION, FILLER, NEEDLE, *SENTENCES, *affixes, *recipe.prose]
    # Repeated, so that the texts of questions are short in tokens although the source text is far longer.
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


def untrained_model(vocab_size: int, hidden_size: int) -> LlamaForCausalLM:
    """Create the untrained model."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=4,
        num_attention_heads=hidden_size // 32,
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


class Recipe(NamedTuple):
    """What a model is trained on.

    Attributes:
        questions: Makes the questions.
        vocab_size: Of the tokenizer.
        least: Tokens of the shortest questions.
        prose: What their texts are made of, for the tokenizer.
    """

    questions: type[Questions]
    vocab_size: int
    least: int
    prose: Sequence[str] = ()


# The model that ships was trained on passkeys; `mixed` has more kinds of questions, and none with a torn needle.
RECIPES = {
    "passkey": Recipe(Passkeys, VOCAB_SIZE, TRAIN_LENGTH // 6),
    "mixed": Recipe(MixedQuestions, 2 * VOCAB_SIZE, TRAIN_LENGTH // 4, PROSE),
}


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
    recipe: Recipe,
    phase: Phase,
    seed: int,
    report: Callable[[dict[str, float]], None],
) -> None:
    """Train a model in place.

    Args:
        model: On the device to train on.
        tokenizer: Its tokenizer.
        texts: The training part of the standard library.
        recipe: On what.
        phase: How.
        seed: Of everything random in the phase.
        report: Called now and then with step, losses and accuracy.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    device = next(model.parameters()).device
    stream = torch.tensor([t for text in texts for t in [*tokenizer.encode(text, add_special_tokens=False), 1]])
    questions = recipe.questions(tokenizer, texts, rng, phase.few_digits)
    optimizer = torch.optim.AdamW(model.parameters(), lr=phase.peak_lr, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(phase.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, phase.steps, phase.peak_lr)
        text = text_batch(stream, STEP_TOKENS // 5 // TRAIN_LENGTH, rng).to(device)
        length = rng.randint(recipe.least, TRAIN_LENGTH)
        ids, labels, longest = questions.batch(length, STEP_TOKENS * 4 // 5 // length)
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
                    "question_loss": round(key_loss.item(), 4),
                    "question_accuracy": round(hit.all(1).float().mean().item(), 4),
                }
            )


def train(
    out: Annotated[Path, typer.Argument(help="Folder for model, tokenizer and training log.")],
    recipe: Annotated[str, typer.Option(help=f"Questions to train on: {', '.join(RECIPES)}.")] = "passkey",
    hidden_size: Annotated[int, typer.Option(help="A multiple of 32; 128 make a million parameters.")] = 128,
    seed: int = 0,
    threads: int = 2,
) -> None:
    """Train the demo model from scratch and save the mean of its weights after each phase."""
    if recipe not in RECIPES:
        raise typer.BadParameter(unknown_name("recipe", recipe, RECIPES))
    if hidden_size < 32 or hidden_size % 32:
        raise typer.BadParameter(f"--hidden-size must be a multiple of 32; found {hidden_size}")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    texts = standard_library(held_out=False)
    tokenizer = build_tokenizer(texts, RECIPES[recipe])
    model = untrained_model(len(tokenizer), hidden_size)
    torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    log: list[dict[str, float]] = []
    started = time.monotonic()

    def report(entry: dict[str, float], phase: int) -> None:
        log.append({"phase": phase, **entry, "seconds": round(time.monotonic() - started, 1)})
        print(json.dumps(log[-1]), flush=True)

    mean: dict[str, torch.Tensor] = {}
    for number, phase in enumerate(PHASES, start=1):
        train_phase(model, tokenizer, texts, RECIPES[recipe], phase, seed + number - 1, partial(report, phase=number))
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
