"""What a sweep keeps on disk: one file per finished shard, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from lm_eval.utils import handle_non_serializable

from mesa_lm.errors import UsageError
from mesa_lm.reporting.files import save_file, write_atomically

if TYPE_CHECKING:
    from mesa_lm.pipelines.shards import Shard

logger = logging.getLogger(__name__)


class Store:
    """The output folder of a sweep.

    `shards/KEY.jsonl` holds its key, a checksum and what a shard answered, `failures/KEY.json` why one has no answers,
    `logs/KEY.log` what it printed, `events.jsonl` when which shard was started and how it ended, `progress.json` who is
    at work, `results/` what was merged. A key names everything that determines a shard's answers.
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
        return len(self.stored_keys())

    def has_shard(self, key: str) -> bool:
        """Tell whether a shard has a file of answers, without a look into it."""
        return self._shard_path(key).is_file()

    def stored_keys(self) -> set[str]:
        """Return the keys of the shards that have stored answers."""
        return {path.stem for path in self._shard_path("any").parent.glob("*.jsonl")}

    def failed_keys(self) -> set[str]:
        """Return the keys of the shards whose failures are stored."""
        return {path.stem for path in (self.folder / "failures").glob("*.json")}

    def log_path(self, key: str) -> Path:
        """File of what a shard printed."""
        return self.folder / "logs" / f"{key}.log"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other drivers out.

        Raises:
            UsageError: Another driver is at work here, or the folder cannot be written, or holds something else.
        """
        for name in ("shards", "failures", "logs", "results"):
            if (self.folder / name).exists() and not (self.folder / name).is_dir():
                raise UsageError(
                    f"{self.folder / name}: a file where a sweep keeps a folder; move it, or give another out"
                )
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

    def in_use(self) -> bool | None:
        """Tell whether a driver is at work here; None where the folder may only be read, and nobody can tell."""
        if not (self.folder / "lock").exists():
            return False
        try:
            with FileLock(self.folder / "lock", timeout=0):
                return False
        except Timeout:
            return True
        except OSError:
            return None

    def write_shard(self, key: str, payload: dict[str, Any]) -> None:
        """Store what a shard answered, atomically and with a checksum; an earlier failure of it is forgotten.

        Raises:
            OSError: The disk is full, for example; nothing is left behind.
        """
        text = json.dumps(payload, default=handle_non_serializable)
        write_atomically(self._shard_path(key), f"{_header(key, text)}\n{text}\n")
        with contextlib.suppress(OSError):  # the answers are there
            (self.folder / "failures" / f"{key}.json").unlink(missing_ok=True)

    def read_shard(self, key: str) -> dict[str, Any] | None:
        """Return what a shard answered; None if it did not, or if its file is damaged or another's, which is logged.

        Raises:
            UsageError: There is a folder in the place of the file.
        """
        path = self._shard_path(key)
        try:
            header, _, text = path.read_text(encoding="utf-8").partition("\n")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            if path.is_dir():
                raise UsageError(f"{path}: a folder where the answers of a shard belong; remove it") from error
            logger.warning("%s cannot be read (%s); the shard runs again", path, error)
            return None
        text = text.removesuffix("\n")
        if header != _header(key, text):
            known = header.partition(" ")[0]
            foreign = header == _header(known, text)
            why = f"holds the answers of another shard, {known}" if foreign else "is damaged"
            logger.warning("%s %s; the shard runs again", path, why)
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
        save_file(self.folder / f"{name}.json", json.dumps(content, indent=2))

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


def _header(key: str, text: str) -> str:
    """Return the first line of a shard's file."""
    return f"{key} {hashlib.sha256(text.encode()).hexdigest()}"
