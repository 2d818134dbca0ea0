"""An index of tasks that reads lm-eval's own only when they are needed."""

from collections.abc import Iterator, MutableMapping
from functools import cache
from pathlib import Path

import lm_eval.tasks
from lm_eval.tasks._index import Entry, TaskIndex


class LazyIndex(MutableMapping[str, Entry]):
    """An index of tasks that turns to lm-eval's own only for what it does not hold itself.

    Reading the 13,000 files of those takes seconds, which a run of this project's tasks can do without.

    Attributes:
        held: What has been indexed so far.
    """

    def __init__(self, held: dict[str, Entry], with_defaults: bool) -> None:
        """Begin with some entries.

        Args:
            held: The entries by name.
            with_defaults: Whether lm-eval's own follow where they are needed.
        """
        self.held, self._is_whole = held, not with_defaults

    def _complete(self) -> dict[str, Entry]:
        if not self._is_whole:
            self._is_whole = True
            for name, entry in stock_index().items():
                self.held.setdefault(name, entry)
        return self.held

    def __getitem__(self, name: str) -> Entry:
        return (self.held if name in self.held else self._complete())[name]

    def __setitem__(self, name: str, entry: Entry) -> None:
        self.held[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._complete()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._complete())

    def __len__(self) -> int:
        return len(self._complete())


@cache
def stock_index() -> dict[str, Entry]:
    """Return lm-eval's own tasks, read once per process."""
    index: dict[str, Entry] = TaskIndex.build([Path(lm_eval.tasks.__file__).parent])
    return index
