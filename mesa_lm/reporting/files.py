"""Write files whole or not at all."""

import os
from pathlib import Path

from mesa_lm.errors import UsageError


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that readers, and a crash at any moment, find the old one or the new one whole.

    Args:
        path: The file; missing folders are created, and a link is followed.
        content: What it is to hold; text becomes UTF-8.

    Raises:
        OSError: It cannot be written; what was there before stays.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def save_file(path: Path, content: str | bytes) -> None:
    """Write a file that a user asked for, as `write_atomically` does.

    Raises:
        UsageError: It cannot be written.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error


def make_folder(path: Path) -> None:
    """Create a folder for what a user asked for, before the work that fills it.

    Raises:
        UsageError: It cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be created: {error.strerror or error}") from error
