"""Keep secrets out of what is written: whatever is named like one."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "[hidden]"
SECRET = re.compile(r"token(?!iz)|secret|passw|api_?key|credential", re.IGNORECASE)
SECRET_ARGUMENT = re.compile(r"(\w*(?:token(?!iz)|secret|passw|api_?key|credential)\w*=)[^,\s]+", re.IGNORECASE)


def without_secrets(value: Any, name: str = "") -> Any:
    """Return a configuration in which whatever is named like a secret is hidden, in `name=value` texts too."""
    if isinstance(value, dict):
        return {key: without_secrets(part, str(key)) for key, part in value.items()}
    if isinstance(value, list):
        return [without_secrets(part, name) for part in value]
    if not isinstance(value, str):
        return value
    return HIDDEN if SECRET.search(name) else SECRET_ARGUMENT.sub(rf"\1{HIDDEN}", value)
