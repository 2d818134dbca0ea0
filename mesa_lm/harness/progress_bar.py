"""The bar that lm-eval's requests move, with the length of what is being computed."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm  # type: ignore[import-untyped]

# How often a long prompt's progress is drawn, in seconds.
REDRAW_S = 0.5


class RequestBar:
    """A bar over requests that also tells how far a long prompt is.

    Attributes:
        moved: When work last went on, of `time.monotonic`.
    """

    def __init__(self) -> None:
        self._bar = tqdm(disable=True)
        self._tokens = self._tokens_run = self._done = 0
        self._rows = 1
        self._drawn = 0.0
        self.moved = time.monotonic()

    @contextmanager
    def over(self, what: str, count: int, hidden: bool) -> Iterator[None]:
        """Show the bar for the duration.

        Args:
            what: What is done, for the reader.
            count: Requests.
            hidden: Show no bar.
        """
        self._done = 0
        with tqdm(total=count, desc=what, disable=hidden) as self._bar:
            yield

    def advance(self, count: int = 1) -> None:
        """Count finished requests."""
        self.moved = time.monotonic()
        self._bar.n = self._done  # without the share of what has now been finished
        self._done += count
        self._bar.update(count)

    def show_tokens(self, length: int, rows: int = 1) -> None:
        """Show the length of what is run next.

        Args:
            length: Tokens of the longest row.
            rows: Their number.
        """
        self.moved = time.monotonic()
        self._tokens, self._tokens_run, self._rows = length * rows, 0, rows
        self._bar.set_postfix_str(f"tokens={length}")

    def note_pass(self, tokens: int) -> None:
        """Show how far a long prompt is, of which so many tokens run next; decoded tokens are not counted."""
        self.moved = time.monotonic()
        if self._tokens_run + tokens <= self._tokens:
            # The share of a prompt that has run counts, so that the time left can be told within the first one.
            self._bar.n = round(self._done + self._rows * self._tokens_run / self._tokens, 2)
            self._tokens_run += tokens
            due = time.monotonic() - self._drawn > REDRAW_S
            self._drawn = time.monotonic() if due else self._drawn
            self._bar.set_postfix_str(f"tokens={self._tokens_run}/{self._tokens}", refresh=due)
