"""Say on stderr what a long command is doing, from its first second."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def shown_progress() -> Iterator[Callable[[str], None]]:
    """Show what is being done inside: in a terminal on one line that changes, else as lines with the time passed.

    Yields:
        What is to be told of each step.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.markup import escape

        with Console(stderr=True).status("starting") as status:
            yield lambda text: status.update(escape(text))
        return
    start = time.monotonic()
    yield lambda text: print(f"{time.monotonic() - start:6.0f} s  {text}", file=sys.stderr, flush=True)
