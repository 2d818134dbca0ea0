"""Keep what lm-eval does beside evaluating out of a sweep's way: what it prints, and asks of the machine."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from lm_eval import evaluator
from lm_eval.loggers.utils import add_env_info, get_commit_from_path


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


@contextmanager
def machine_asked_once() -> Iterator[None]:
    """Let one look at the machine serve all evaluations; lm-eval takes seconds for one each time."""
    stock = evaluator.add_env_info, evaluator.get_git_commit_hash
    try:
        evaluator.add_env_info, evaluator.get_git_commit_hash = _add_environment, _commit
        yield
    finally:
        evaluator.add_env_info, evaluator.get_git_commit_hash = stock


def _add_environment(results: dict[str, Any]) -> None:
    results.update(_environment())


@cache
def _environment() -> dict[str, Any]:
    found: dict[str, Any] = {}
    add_env_info(found)
    return found


@cache
def _commit() -> str | None:
    """Return lm-eval's `git_hash`, the commit of the working folder, without git's complaint where there is none."""
    with contextlib.suppress(OSError):
        said = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, check=False)
        if said.returncode == 0:
            return said.stdout.strip()
    commit: str | None = get_commit_from_path(str(Path.cwd()))
    return commit


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
