"""Which threads generate with a model, so that its method is not taken from under them unnoticed."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, get_ident
from typing import Any

from mesa_lm.errors import ModelError


class Generating:
    """The calls of one model's `generate` that run, by thread."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._threads: list[int] = []
        self._closing = self._stopped = False

    @contextmanager
    def by_this_thread(self, streamer: Any) -> Iterator[None]:
        """Note a call for as long as it runs.

        Args:
            streamer: Where the call puts its text; whoever reads there must not wait for a call that was refused.
        """
        with self._changed:
            self._threads.append(get_ident())
        try:
            yield
        except ModelError:
            if streamer is not None:
                streamer.end()
            raise
        finally:
            with self._changed:
                self._threads.remove(get_ident())
                self._changed.notify_all()

    def check_open(self) -> None:
        """Stop a call of the model while its method is about to be removed.

        Raises:
            ModelError: It is.
        """
        if self._closing:
            self._stopped = True
            raise ModelError("the method was removed from the model while this thread generated; the answer is cut off")

    @contextmanager
    def closed(self) -> Iterator[bool]:
        """Let no call go on, and wait until none runs; gives whether one had to be stopped.

        Raises:
            ModelError: The call is this thread's own.
        """
        with self._changed:
            if get_ident() in self._threads:
                raise ModelError("a method cannot be removed by something that its model's own generate() calls")
            self._closing, self._stopped = True, False
            try:
                self._changed.wait_for(lambda: not self._threads)  # each stops before its next token
                yield self._stopped
            finally:
                self._closing = False
