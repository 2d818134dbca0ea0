"""Lengths in tokens as names and options write them: "4k" is 4096 and "3000" is 3000."""

import re

LABEL = r"[1-9][0-9]{0,17}k?"


def length_label(length: int) -> str:
    """Return how a length is written: 4096 tokens as "4k", and 3000 tokens as "3000"."""
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)


def parse_length(label: str) -> int | None:
    """Return the tokens that a label such as "4k" or "3000" says, None if it is no such label."""
    if not re.fullmatch(LABEL, label):
        return None
    return int(label.removesuffix("k")) * (1024 if label.endswith("k") else 1)


def length_name(group: str, length: int) -> str:
    """Return the name of the task that runs a group at one length, such as "passkey_long_4k"."""
    return f"{group}_{length_label(length)}"


def split_length_name(name: str) -> tuple[str, int]:
    """Return the group and the length, in tokens, that a name asks for; the length is 0 where it names none."""
    group, _, label = name.rpartition("_")
    length = parse_length(label) if group else None
    return (name, 0) if length is None else (group, length)
