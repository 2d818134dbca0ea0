"""Carry out a probe: load the model, feed it the input under every method, measure."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from mesa_lm.demo import MODEL_PATH
from mesa_lm.errors import UsageError
from mesa_lm.harness.model_args import check_device, check_host_args, checked_source, one_line_errors
from mesa_lm.harness.tokenizing import load_tokenizer
from mesa_lm.methods.registry import available_methods, make_method
from mesa_lm.methods.train_length import train_length_of
from mesa_lm.reporting.lm_eval_files import DEMO_NAME
from mesa_lm.studies.probe.findings import Findings
from mesa_lm.studies.probe.measure import Subject, lengths_up_to, passkey_curves, saved_passkey_curves, tail_curves
from mesa_lm.studies.probe.predict import find_jumps
from mesa_lm.studies.probe.profile import chosen_layers, record


def probe_model(
    *,
    model: str | None,
    names: Sequence[str],
    word: str,
    text: Path | None,
    multiple: int,
    layers: str | None,
    top: int,
    samples: int,
    results: Path | None,
    device: str,
    dtype: str,
    progress: Callable[[str], None],
) -> Findings:
    """Probe a model and measure it.

    Args:
        model: Folder or name on the hub; None: the demo model.
        names: Of the methods; none: every method. `origin` is always among them.
        word: What to repeat.
        text: File whose text to feed instead; None: the word.
        multiple: Length of the input in training lengths.
        layers: As `chosen_layers`.
        top: Most dimensions to predict from.
        samples: Questions and texts to measure with; 0 measures nothing.
        results: Where to take passkey accuracy from instead of measuring it; None: measure.
        device: As for `torch.device`, by name; "auto": CUDA if there is one.
        dtype: Of the weights, by name; "auto": as they are saved.
        progress: Told what is being done.

    Returns:
        What was found.

    Raises:
        MesaError: Something given cannot be used; before the weights are loaded wherever that can be known.
    """
    chosen = {name: make_method(name) for name in dict.fromkeys(["origin", *(names or available_methods())])}
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    check_host_args({"dtype": dtype})
    source = checked_source(model or str(MODEL_PATH))
    with one_line_errors("model", source):
        config = AutoConfig.from_pretrained(source)
    train_length = train_length_of(config)
    numbers = chosen_layers(layers, config.get_text_config().num_hidden_layers)
    tokenizer = load_tokenizer({"pretrained": source})
    length = multiple * train_length
    tokens = repeated_tokens(tokenizer, word, length) if text is None else file_tokens(tokenizer, text, length)
    passkey = {} if results is None else saved_passkey_curves(results, list(chosen), train_length)
    with one_line_errors("model", source):
        loaded = AutoModelForCausalLM.from_pretrained(source, dtype=dtype).eval()
        loaded.to(device)
    profiles = {}
    for name, method in chosen.items():
        progress(f"recording hidden states under {name}")
        profiles[name] = record(loaded, method, tokens, numbers, train_length)
    jumps = find_jumps(profiles["origin"], top)
    lengths = lengths_up_to(train_length, multiple)
    subject = Subject(model=loaded, tokenizer=tokenizer, methods=chosen, lengths=lengths, samples=samples)
    tail_nll = {}
    if samples and results is None:
        progress("measuring passkey accuracy")
        passkey = passkey_curves(subject)
    if samples:
        progress("measuring the loss of the last tokens")
        tail_nll = tail_curves(subject)
    return Findings(
        model=source if model else DEMO_NAME,
        text=f"{word!r} repeated" if text is None else f"text of {text.name}",
        train_length=train_length,
        length=length,
        jumps=jumps,
        profiles=profiles,
        passkey=passkey,
        tail_nll=tail_nll,
    )


def repeated_tokens(tokenizer: PreTrainedTokenizerBase, word: str, length: int) -> list[int]:
    """Return a word, repeated with single spaces between, as tokens.

    Args:
        tokenizer: The model's; it adds its start token, if it has one.
        word: A word or a sentence.
        length: Tokens.

    Raises:
        UsageError: The word is empty.
    """
    if not word.strip():
        raise UsageError(f"probe: the word to repeat must not be empty; found {word!r}")
    tokens: list[int] = []
    copies = 16
    # How many tokens a word makes depends on its neighbours, so the number of copies is found by doubling.
    while len(tokens) < length and copies <= 16 * length:
        copies *= 2
        tokens = tokenizer(" ".join([word] * copies), verbose=False)["input_ids"]
    if len(tokens) < length:
        raise UsageError(f"probe: the model's tokenizer makes no tokens of the word {word!r}; give another one")
    return tokens[:length]


def file_tokens(tokenizer: PreTrainedTokenizerBase, path: Path, length: int) -> list[int]:
    """Return the first tokens of a text file.

    Args:
        tokenizer: The model's; it adds its start token, if it has one.
        path: The file, UTF-8.
        length: Tokens.

    Raises:
        UsageError: The file cannot be read, is empty or too short.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text: {error}") from error
    if not text.strip():
        raise UsageError(f"{path}: the text is empty")
    tokens: list[int] = tokenizer(text, verbose=False)["input_ids"]
    if len(tokens) < length:
        raise UsageError(
            f"{path}: the text has {len(tokens)} tokens, needed are {length}; give a longer one or a lower --multiple"
        )
    return tokens[:length]
