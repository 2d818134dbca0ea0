"""lm-eval's caches, kept apart by what determines an answer or a prompt.

`--use_cache` looks an answer up by its request alone, and `--cache_requests` looks prompts up by the task's name.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.task import Task
from torch import Tensor

from mesa_lm.harness.sources import package_digest, task_digest

# Below lm-eval's logger, because that one alone has a handler in an lm_eval run.
logger = logging.getLogger("lm_eval.models.mesa_hf")

# Numbers of each weight that go into a model's fingerprint, evenly spaced: enough to tell checkpoints apart, and quick.
SAMPLED = 4096


def use_own_table(answers: Any, identity: dict[str, Any]) -> None:
    """Make lm-eval's answer cache read and write the answers of one model and method alone.

    One file can so hold the answers of many; those of other model classes are neither served nor changed.

    Args:
        answers: The `SqliteDict` behind `--use_cache`.
        identity: What determines an answer, beside the request.
    """
    readable = json.dumps(identity, sort_keys=True, default=repr)
    answers.tablename = f"mesa_lm {sha256(readable.encode()).hexdigest()[:16]}"
    answers.conn.execute(f'CREATE TABLE IF NOT EXISTS "{answers.tablename}" (key TEXT PRIMARY KEY, value BLOB)')
    answers["mesa_lm"] = readable  # for whoever opens the file


def copy_in_memory(answers: Any, content: Mapping[str, Any]) -> None:
    """Put a table in memory in the place of lm-eval's file of answers, which another process writes.

    Args:
        answers: The `SqliteDict` behind `--use_cache`.
        content: What the table holds.
    """
    table = answers.tablename
    answers.close()
    answers.__init__(":memory:", tablename=table, autocommit=True)
    answers.update(content)


def weights_digest(model: torch.nn.Module) -> str:
    """Return a fingerprint of a model's weights, adapters included; two checkpoints of one training differ in it."""
    digest = sha256()
    for name, weight in model.state_dict().items():
        if not isinstance(weight, Tensor) or weight.is_meta:
            continue
        numbers = weight.detach().flatten()[:: max(1, weight.numel() // SAMPLED)]
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(numbers.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def interruption_reported(answers: Any) -> Iterator[None]:
    """Say at Ctrl-C what is kept.

    Args:
        answers: The `SqliteDict` behind `--use_cache`, or None without.
    """
    try:
        yield
    except KeyboardInterrupt:
        if answers is None:
            logger.warning("Interrupted. No answers are kept: there was no --use_cache PATH to keep them in.")
        else:
            answers.commit()
            logger.warning(
                "Interrupted. %d finished answers are kept in %s; the same command goes on from them.",
                len(answers) - 1,
                answers.filename,
            )
        raise


def key_requests_by_content(task: Task, yaml: Path | None) -> None:
    """Let `--cache_requests` find prompts again only for the same documents, options, sources and tokenizer.

    Args:
        task: Changed in place. Its documents are read when the cache is used.
        yaml: The file that describes it, where there is one.
    """
    build = task.build_all_requests

    def build_all_requests(*, cache_requests: bool = False, tokenizer_name: str = "", **options: Any) -> None:
        if cache_requests:
            sources = [package_digest(), yaml and task_digest(yaml)]
            content = [sources, task.dump_config(), options.get("samples"), [dict(doc) for doc in task.eval_docs]]
            digest = sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()[:16]
            # lm-eval uses the name for nothing but the key.
            tokenizer_name = f"{tokenizer_name}-{digest}"
        build(cache_requests=cache_requests, tokenizer_name=tokenizer_name, **options)

    task.build_all_requests = build_all_requests
