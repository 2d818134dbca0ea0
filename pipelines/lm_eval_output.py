"""Keep what lm-eval prints out of the way of a sweep: in a file."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def printed_to(log: Path) -> Iterator[None]:
    """Send what lm-eval prints to a file, as far as there is room for it."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    printed = _Printed(log)
    try:
        logger.setLevel(logging.ERROR)
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            yield
    finally:
        logger.setLevel(level)
        printed.close()


class _Printed(io.TextIOWrapper):
    """A file to append to, which loses what cannot be written instead of failing whoever prints."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("ab")
        except OSError:
            file = Path(os.devnull).open("ab")  # noqa: SIM115  # `close` closes it
        super().__init__(file, encoding="utf-8", errors="backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            super().flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()
