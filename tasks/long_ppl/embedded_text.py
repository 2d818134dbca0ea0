"""Text of Python's own standard library, split into a training part and a held-out part.

The split is by file path, so that it is the same on every machine with the same Python version.
"""

import hashlib
import re
import sysconfig
from functools import cache
from pathlib import Path

HELD_OUT_SHARE = 10  # one file in ten
# Not part of every distribution, or not prose-like source text.
EXCLUDED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "ensurepip"}


def standard_library(held_out: bool) -> list[str]:
    """Read one part of the standard library's source files.

    Args:
        held_out: True for the files kept away from training, False for the others.

    Returns:
        The files' texts, ordered by path.
    """
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    chosen = [path for path in paths if not EXCLUDED & set(path.parts) and (_bucket(path) == 0) == held_out]
    return [(root / path).read_text(encoding="utf-8", errors="replace") for path in chosen]


def _bucket(path: Path) -> int:
    return int(hashlib.sha256(path.as_posix().encode()).hexdigest(), 16) % HELD_OUT_SHARE


@cache
def held_out_text() -> str:
    """Return the held-out files, one after the other."""
    return "\n".join(standard_library(held_out=True))


@cache
def line_starts() -> list[int]:
    """Return where in the held-out text its lines start, empty ones left out."""
    return [line.start() for line in re.finditer("^.", held_out_text(), re.MULTILINE)]
