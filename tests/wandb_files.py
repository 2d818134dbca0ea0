"""Read what W&B wrote offline: a log of protobuf records in LevelDB's framing."""

import json
import struct
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

HEADER, BLOCK = 7, 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(folder: Path) -> list[Any]:
    """Every record of one offline run."""
    (path,) = folder.glob("*.wandb")
    data, at, part, found = path.read_bytes(), HEADER, b"", []
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK  # a header never crosses a block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        at += HEADER
        part = data[at : at + length] if kind in (FULL, FIRST) else part + data[at : at + length]
        at += length
        if kind in (FULL, LAST) and part:
            found.append(wandb_internal_pb2.Record.FromString(part))
    return found


def history(folder: Path) -> list[dict[str, Any]]:
    """Every logged row."""
    rows = [record.history.item for record in records(folder) if record.WhichOneof("record_type") == "history"]
    return [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row} for row in rows]


def summary(folder: Path) -> dict[str, Any]:
    """The last value of every summary key."""
    found: dict[str, Any] = {}
    for record in records(folder):
        if record.WhichOneof("record_type") == "summary":
            found |= {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.summary.update
            }
    return found


def config(folder: Path) -> dict[str, Any]:
    """The configuration."""
    found: dict[str, Any] = {}
    for record in records(folder):
        for update in (record.run.config.update, record.config.update):
            found |= {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in update}
    return found


def run_of(folder: Path) -> Any:
    """Name, group, tags and so on."""
    return next(record.run for record in records(folder) if record.WhichOneof("record_type") == "run")
