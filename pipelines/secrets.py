"""Keep secrets out of what is written: what has one of these names, and what looks like a key."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "[hidden]"
# Nothing else is hidden for its name: `think_end_token`, `tokenizer` and `max_tokens` are options that matter.
NAME = re.compile(
    r"(?:(?:hf|hub|api|auth|use_auth|access|bearer|huggingface)_)?token|(?:access|private)_key|passphrase"
    r"|(?:(?:hf|wandb|openai|anthropic)_)?api_?key|(?:client_)?secret(?:_key)?|passw(?:or)?d|credentials?|authorization"
    r"|aws_(?:access_key_id|secret_access_key|session_token)",
    re.IGNORECASE,
)
# Keys of the Hugging Face hub, W&B, OpenAI and Anthropic, GitHub, GitLab, AWS and Slack; passwords in an address.
VALUES = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bwandb_v\d_[A-Za-z0-9_]{20,}|\bsk-[A-Za-z0-9_-]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}"
    r"|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}|\bA[KS]IA[A-Z0-9]{16}\b|\bxox[abprs]-[\w-]{10,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
# `name=value` in a text, as in arguments written in one line.
ARGUMENT = re.compile(rf"(?<![\w-])((?:{NAME.pattern})=)[^,\s]+", re.IGNORECASE)


def without_secrets(value: Any, name: str = "") -> Any:
    """Return a configuration in which secrets are hidden, in `name=value` texts too."""
    if isinstance(value, dict):
        return {key: without_secrets(part, str(key)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(part, name) for part in value]
    if not isinstance(value, str):
        return value
    if NAME.fullmatch(name.replace("-", "_")):
        return HIDDEN
    return VALUES.sub(HIDDEN, ARGUMENT.sub(rf"\1{HIDDEN}", value))
