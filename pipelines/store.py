"""What a sweep keeps on disk: one file per finished shard, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from lm_eval.utils import handle_non_serializable

from mesa_lm.errors import UsageError

if TYPE_CHECKING:
    from mesa_lm.pipelines.plan import Shard

logger = logging.getLogger(__name__)


class Store:
    """The output folder of a sweep.

    `shards/KEY.jsonl` holds a checksum and what a shard answered, `failures/KEY.json` why one has no answers,
    `logs/KEY.log` what it printed, `events.jsonl` when which shard was started and how it ended, `results/` what was
    merged. A key names everything that determines a shard's answers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def results(self) -> Path:
        """Folder of the merged results."""
        return self.folder / "results"

    def _shard_path(self, key: str) -> Path:
        """File of a shard's answers; not *.json, which `mesa-lm leaderboard` and others take for results."""
        return self.folder / "shards" / f"{key}.jsonl"

    def count_shards(self) -> int:
        """Return how many shards have stored answers."""
        return sum(1 for _ in self._shard_path("any").parent.glob("*.jsonl"))

    def log_path(self, key: str) -> Path:
        """File of what a shard printed."""
        return self.folder / "logs" / f"{key}.log"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other drivers out.

        Raises:
            UsageError: Another driver is at work here, or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / "lock", timeout=0)
            lock.acquire()
        except Timeout as error:
            raise UsageError(
                f"{self.folder}: another sweep is writing here; wait for it, or give another out="
            ) from error
        except OSError as error:
            raise UsageError(f"{self.folder}: cannot be written: {error.strerror or error}") from error
        try:
            yield
        finally:
            lock.release()

    def in_use(self) -> bool:
        """Tell whether a driver is at work here."""
        try:
            with FileLock(self.folder / "lock", timeout=0):
                return False
        except Timeout:
            return True

    def write_shard(self, key: str, payload: dict[str, Any]) -> None:
        """Store what a shard answered, atomically and with a checksum; an earlier failure of it is forgotten.

        Raises:
            OSError: The disk is full, for example; nothing is left behind.
        """
        text = json.dumps(payload, default=handle_non_serializable)
        write_atomically(self._shard_path(key), f"{json.dumps(_checksum(text))}\n{text}\n")
        (self.folder / "failures" / f"{key}.json").unlink(missing_ok=True)

    def read_shard(self, key: str) -> dict[str, Any] | None:
        """Return what a shard answered; None if it did not, or if its file is damaged, which is logged."""
        path = self._shard_path(key)
        try:
            checksum, _, text = path.read_text(encoding="utf-8").partition("\n")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            logger.warning("%s cannot be read (%s); the shard runs again", path, error)
            return None
        text = text.removesuffix("\n")
        if checksum != json.dumps(_checksum(text)):
            logger.warning("%s is damaged; the shard runs again", path)
            return None
        payload: dict[str, Any] = json.loads(text)
        return payload

    def log(self, event: str, shard: Shard, **about: Any) -> None:
        """Add a line to `events.jsonl`: what happened to a shard, and when."""
        where = {"key": shard.key, "leaf": shard.leaf, "samples": [shard.start, shard.stop]}
        line = {"time": time.time(), "event": event, **where, **about}
        # A full disk must not end the sweep: what matters is stored elsewhere, or will fail there.
        with contextlib.suppress(OSError), (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({key: value for key, value in line.items() if value is not None}) + "\n")

    def write_failure(self, key: str, failure: dict[str, Any]) -> None:
        """Store why a shard has no answers."""
        write_atomically(self.folder / "failures" / f"{key}.json", json.dumps(failure, indent=2))

    def read_failure(self, key: str) -> dict[str, Any] | None:
        """Return why a shard has no answers, None if that is not known."""
        try:
            failure: dict[str, Any] = json.loads((self.folder / "failures" / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return failure

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Store a JSON file of the sweep itself, such as its plan.

        Raises:
            UsageError: The disk is full, for example.
        """
        path = self.folder / f"{name}.json"
        try:
            write_atomically(path, json.dumps(content, indent=2))
        except OSError as error:
            raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from error

    def read(self, name: str) -> dict[str, Any]:
        """Return a JSON file of the sweep itself.

        Raises:
            UsageError: It is not there.
        """
        path = self.folder / f"{name}.json"
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{path}: no {name} of a sweep here; give the folder that `mesa-lm sweep` wrote"
            ) from error
        return content


@contextmanager
def quiet(log: Path) -> Iterator[None]:
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


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that readers, and a crash at any moment, find the old one or the new one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
