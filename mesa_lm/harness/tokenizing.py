"""How the evaluated model encodes text, as a task needs it to build inputs of a given length."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mesa_lm.errors import UsageError
from mesa_lm.harness.model_args import one_line_errors

# Arguments of a model that name its tokenizer, the first one that is given.
NAMING = ("tokenizer", "pretrained", "model")
# Arguments that lm-eval's Hugging Face models pass on to the tokenizer, as `from_pretrained` calls them.
TOKENIZER_ARGS = {
    "use_fast_tokenizer": "use_fast",
    **{name: name for name in ("revision", "trust_remote_code", "add_bos_token", "subfolder")},
}


class TextEncoding(NamedTuple):
    """How a model turns text into tokens.

    Attributes:
        tokenizer: Its tokenizer.
        add_bos_token: As the argument of the model; None: as the tokenizer does.
        chat_template_args: Settings of the tokenizer's chat template.
        rendered: What lm-eval makes of a prompt before it is encoded: the user's turn of a chat, or the prompt itself.
    """

    tokenizer: PreTrainedTokenizerBase
    add_bos_token: bool | None = None
    chat_template_args: Mapping[str, Any] = {}
    rendered: Callable[[str], str] = str

    @property
    def count(self) -> Callable[[str], int]:
        """From a text to its number of tokens, special ones such as BOS included; always the same function."""
        return token_counter(self.tokenizer, self.add_bos_token)

    def count_prompt(self, text: str) -> int:
        """Return the tokens of a prompt as it is sent, what a chat template adds included."""
        return self.count(self.rendered(text))


_evaluated: ContextVar[Any] = ContextVar("what evaluated_model() was given", default=None)


@contextmanager
def evaluated_model(encoding: Callable[[], TextEncoding | None] | None) -> Iterator[None]:
    """Let tasks count as a model encodes text for the duration; `note_evaluated` may tell of another one.

    Args:
        encoding: Returns how, or None where that is not known. It is called only when a task asks, since some models
            load their tokenizer then. None: the model is not known yet.
    """
    token = _evaluated.set(encoding)
    try:
        yield
    finally:
        _evaluated.reset(token)


def note_evaluated(encoding: Callable[[], TextEncoding | None]) -> None:
    """Tell how the evaluated model encodes text, once it is loaded, up to the end of `evaluated_model`."""
    _evaluated.set(encoding)


def evaluated_encoding() -> TextEncoding | None:
    """Return how the evaluated model encodes text; None where no model is evaluated, or it is not known."""
    encoding: Callable[[], TextEncoding | None] | None = _evaluated.get()
    return encoding() if encoding else None


def encoding_of(lm: Any, rendered: Callable[[str], str] = str) -> TextEncoding | None:
    """Return how a model of lm-eval encodes text; None if it has no tokenizer of transformers, or cannot load it.

    Args:
        lm: The model.
        rendered: What becomes of a prompt before it is encoded.
    """
    try:
        tokenizer = getattr(lm, "tokenizer", None)
    except OSError:
        return None
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return None
    settings = getattr(lm, "chat_template_args", None) or {}
    return TextEncoding(tokenizer, getattr(lm, "add_bos_token", None), settings, rendered)


def task_encoding(model_args: Mapping[str, Any]) -> TextEncoding:
    """Return the encoding by which a task counts: the evaluated model's, unless the user names a tokenizer.

    Args:
        model_args: The user's metadata, and the arguments of the model as far as lm-eval adds them.

    Raises:
        UsageError: Nothing says which model is evaluated.
        ModelError: There is no such tokenizer, or it cannot be loaded.
    """
    evaluated = evaluated_encoding()
    if evaluated is not None and not model_args.get("tokenizer"):
        return evaluated
    settings = dict(model_args.get("chat_template_args") or {})
    if model_args.get("enable_thinking") is not None:
        settings["enable_thinking"] = model_args["enable_thinking"]
    rendered = evaluated.rendered if evaluated else str
    return TextEncoding(load_tokenizer(model_args), model_args.get("add_bos_token"), settings, rendered)


def load_tokenizer(model_args: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Load the tokenizer that arguments of a model name.

    Args:
        model_args: The arguments: `tokenizer`, `pretrained` or (API models) `model`, and those that lm-eval's Hugging
            Face models pass on to the tokenizer.

    Returns:
        The tokenizer.

    Raises:
        UsageError: They name none.
        ModelError: There is no such tokenizer, or it cannot be loaded.
    """
    source = next((model_args[name] for name in NAMING if model_args.get(name)), None)
    if source is None:
        raise UsageError(
            "lengths are counted by the tokenizer of the evaluated model, and nothing says here which it is; name it: "
            """--metadata '{"tokenizer": "NAME"}', from Python TaskManager(metadata={"tokenizer": "NAME"})"""
        )
    if isinstance(source, PreTrainedTokenizerBase):
        return source
    passed = {theirs: model_args.get(name) for name, theirs in TOKENIZER_ARGS.items()}
    name = str(Path(str(getattr(source, "name_or_path", source))).expanduser())
    with one_line_errors("tokenizer", name):
        return _load_tokenizer(name, **{k: v for k, v in passed.items() if v is not None})


@cache
def _load_tokenizer(name: str, **settings: Any) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **settings)
    return tokenizer


def rendering(system: str | None, chat: Callable[[list[dict[str, str]]], str] | None) -> Callable[[str], str]:
    """Return what lm-eval makes of a prompt before it is encoded.

    Args:
        system: The system instruction; None for none.
        chat: Renders a chat by the model's template; None: the prompt is no chat.
    """

    def rendered(prompt: str) -> str:
        if chat is None:
            return (system or "") + prompt
        messages = [{"role": "system", "content": system}] if system else []
        return chat([*messages, {"role": "user", "content": prompt}])

    return rendered


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
