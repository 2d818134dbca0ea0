"""Put results of several people side by side: the same cell of two of them stays two rows."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from mesa_lm.errors import UsageError
from mesa_lm.reporting.method_labels import with_source
from mesa_lm.reporting.results import KEY, Results, read

logger = logging.getLogger(__name__)


def read_merged(paths: Sequence[Path]) -> Results:
    """Read results of several sources; a method that several of them have is named with its source.

    Within a source the run started last wins, as in `read`.

    Args:
        paths: One file or folder per source, whose name is that of the source.

    Returns:
        The rows of all.

    Raises:
        UsageError: There is but one source, two have one name, or one cannot be read.
    """
    names = [path.resolve().name for path in paths]
    if len(paths) < 2:
        raise UsageError("--merge needs several results: give one folder per source")
    if len(set(names)) < len(names):
        raise UsageError(f"--merge names sources by their folders, which must differ, found {', '.join(names)}")
    sources = [read([path]) for path in paths]
    _warn_of_versions(names, sources)
    table = pd.concat([found.table.assign(of=name) for name, found in zip(names, sources, strict=True)])
    of_several = table.groupby(["model", "method", "task"])["of"].transform("nunique") > 1
    labels = [with_source(label, of) for label, of in zip(table.method, table.of, strict=True)]
    table["method"] = table.method.mask(of_several, pd.Series(labels, index=table.index))
    table = table.drop(columns="of").sort_values(KEY, ignore_index=True)
    files = {path: file for found in sources for path, file in found.files.items()}
    problems = tuple(problem for found in sources for problem in found.problems)
    return replace(sources[0], table=table, files=files, problems=problems)


def _warn_of_versions(names: Sequence[str], sources: Sequence[Results]) -> None:
    """Log which tasks have several versions: their numbers do not compare."""
    found: dict[str, dict[str, set[str]]] = {}
    for name, results in zip(names, sources, strict=True):
        for task, leaf, path in zip(*(results.table[column] for column in ("task", "name", "source")), strict=True):
            version = (results.files[path].content.get("versions") or {}).get(leaf)
            if version is not None:
                found.setdefault(task, {}).setdefault(str(version), set()).add(name)
    for task, versions in found.items():
        if len(versions) > 1:
            told = "; ".join(f"{version} in {', '.join(sorted(of))}" for version, of in sorted(versions.items()))
            logger.warning("%s has several versions, whose numbers do not compare: %s", task, told)
