"""What determines the answers of a shard: model, method, task, documents, seed, sources and versions, in one digest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from lm_eval.api.task import Task
from lm_eval.utils import hash_string

from mesa_lm.demo import MODEL_PATH
from mesa_lm.harness.sources import files_digest, package_digest
from mesa_lm.pipelines.settings import MethodEntry, ModelEntry, Sweep, TaskEntry

PACKAGES = ("lm-eval", "mesa-lm", "torch", "transformers")
# Of a model's files, those up to this size are read to recognise them.
READ_BYTES = 64 * 2**20
# Of this package's modules that evaluate shards, those that `package_digest` does not count.
EVALUATING = tuple(Path(__file__).with_name(name) for name in ("entry_tasks.py", "settings.py", "worker.py"))


def answers_identity(
    sweep: Sweep, model: ModelEntry, method: MethodEntry, task: TaskEntry, leaf: Task, sources: str
) -> dict[str, Any]:
    """Return what determines the answers to a task of lm-eval, whichever samples are asked.

    Args:
        sweep: The sweep.
        model: One of its models.
        method: One of its methods.
        task: One of its entries of tasks.
        leaf: A task of lm-eval that the entry stands for.
        sources: Digests of the sources that answers come from, see `Shard`.
    """
    return {
        "model": [model.model_dump(), weights_identity(model), sweep.batch_size],
        "method": method.model_dump(),
        "task": [task.model_dump(), sweep.metadata(task), leaf.VERSION, asking_digest(leaf)],
        "seed": sweep.seed,
        "sources": sources,
        "versions": {package: version(package) for package in PACKAGES},
    }


def shard_key(identity: Mapping[str, Any], name: str, start: int, stop: int, documents: str) -> str:
    """Return the digest that the answers to some samples are stored under.

    Args:
        identity: The `answers_identity` of their task.
        name: Of that task.
        start: First sample.
        stop: One past the last.
        documents: Their `documents_digest`.
    """
    content = {**identity, "range": [name, start, stop], "documents": documents}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def evaluation_digest() -> str:
    """Return a digest of this project's sources that determine an answer, without those of tasks."""
    return f"{package_digest()} {files_digest(EVALUATING)}"


def documents_digest(leaf: Task, start: int, stop: int) -> str:
    """Return a digest of the documents of some samples."""
    digest: str = hash_string(json.dumps([leaf.eval_docs[i] for i in range(start, stop)], default=str))
    return digest


def asking_digest(leaf: Task) -> str:
    """Return a digest of how a task asks and scores; its functions count by their source."""
    described = {name: value for name, value in leaf.dump_config().items() if name != "metadata"}
    text = json.dumps(described, sort_keys=True, default=str)
    digest: str = hash_string(re.sub(r" at 0x[0-9a-f]+", "", text))
    return digest


def weights_identity(model: ModelEntry) -> list[tuple[str, str]]:
    """Return what tells a model from another one of its name: a folder's files, or the commit on the hub."""
    folder = MODEL_PATH if model.pretrained is None else Path(model.pretrained).expanduser()
    if not folder.is_dir():
        return [("commit", hub_commit(str(model.pretrained), model.revision, model.args.get("token")))]
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return [(path.name, _file_digest(path, path.stat().st_size, path.stat().st_mtime_ns)) for path in files]


@lru_cache(maxsize=64)
def _file_digest(path: Path, size: int, changed_ns: int) -> str:
    """Return a digest of a file, which is kept until the file changes; of large ones size and date have to do."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if size <= READ_BYTES else f"{size} {changed_ns}"


@lru_cache(maxsize=64)
def hub_commit(name: str, revision: str, token: str | None) -> str:
    """Return the commit that a branch or tag on the hub stands for, or did when last seen; "" if that is unknown."""
    try:
        return Path(hf_hub_download(name, "config.json", revision=revision, token=token)).parent.name
    except (OSError, ValueError, HfHubHTTPError):
        return ""  # whoever loads the model says what is wrong
