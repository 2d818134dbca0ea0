"""The evaluated model's tokenizer, as a task needs it to build inputs of a given length."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mesa_lm.demo import MODEL_PATH
from mesa_lm.harness.model_args import one_line_errors


def load_tokenizer(model_args: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the evaluated model, or the demo model's where no model is named.

    Args:
        model_args: The arguments of the model: `tokenizer`, `pretrained` or (API models) `model`, and those that
            lm-eval's Hugging Face models pass on to the tokenizer.

    Returns:
        The tokenizer.

    Raises:
        ModelError: There is no such tokenizer, or it cannot be loaded.
    """
    source = next((model_args[k] for k in ("tokenizer", "pretrained", "model") if model_args.get(k)), str(MODEL_PATH))
    if isinstance(source, PreTrainedTokenizerBase):
        return source
    passed = {"use_fast": model_args.get("use_fast_tokenizer")}
    passed |= {k: model_args.get(k) for k in ("revision", "trust_remote_code", "add_bos_token", "subfolder")}
    name = str(Path(getattr(source, "name_or_path", source)).expanduser())
    with one_line_errors("tokenizer", name):
        return _load_tokenizer(name, **{k: v for k, v in passed.items() if v is not None})


@cache
def _load_tokenizer(name: str, **settings: Any) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **settings)
    return tokenizer


@cache
def token_counter(tokenizer: PreTrainedTokenizerBase, add_bos_token: bool | None) -> Callable[[str], int]:
    """Return a function that counts a text's tokens as lm-eval's Hugging Face models encode it.

    Args:
        tokenizer: The tokenizer.
        add_bos_token: The argument of the model; None: as the tokenizer does.

    Returns:
        From a text to its number of tokens, special tokens such as BOS included.
    """

    def count_tokens(text: str) -> int:
        special = add_bos_token
        if tokenizer.bos_token and text.startswith(tokenizer.bos_token):
            special = False
        settings = {} if special is None else {"add_special_tokens": special}
        return len(tokenizer(text, verbose=False, **settings)["input_ids"])

    return count_tokens
