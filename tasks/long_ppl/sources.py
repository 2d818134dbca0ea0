"""Where the documents of long_ppl come from: the embedded text, local files, or a data set on the Hugging Face hub."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict, load_dataset

from mesa_lm.errors import UsageError, unknown_name

# By suffix, the loader of `datasets` and its settings.
FORMATS: Mapping[str, tuple[str, dict[str, Any]]] = {
    ".txt": ("text", {"sample_by": "document"}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
}
# Short names of the sets that papers on long inputs use. Those whose repositories hold a loading script, which
# `datasets` no longer runs, are read from the copies in parquet that the hub makes of them.
NAMED: Mapping[str, dict[str, str]] = {
    "pg19": {"path": "emozilla/pg19", "split": "test"},
    "pile-10k": {"path": "NeelNanda/pile-10k", "split": "train"},
    "proof-pile": {"path": "hoskinson-center/proof-pile", "split": "test", "revision": "refs/convert/parquet"},
}
_TEXT_TYPES = ("string", "large_string")


class Source(NamedTuple):
    """Where documents come from.

    Attributes:
        data: A file or folder, a name of `NAMED`, or the name of a data set on the hub.
        subset: Name of the data set's configuration; None: its only one.
        split: Name of its split; None: its only one, or that of `NAMED`.
        column: The column that holds the text; None: `text`, else the only column of text.
    """

    data: str
    subset: str | None = None
    split: str | None = None
    column: str | None = None

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self._asdict().items() if value)


def read_documents(source: Source) -> Iterator[str]:
    """Read the documents of a source, in its order.

    Yields:
        The texts.

    Raises:
        UsageError: There is no such source, split or column.
    """
    path = Path(source.data).expanduser()
    tables = _local(path) if path.exists() else [_from_hub(source)]
    for table in tables:
        if isinstance(table, DatasetDict):
            table = _only_split(source, table)
        # An empty cell is a document of no tokens: too short, and counted as such.
        yield from (text or "" for text in table[_text_column(source, table)])


def _local(path: Path) -> list[Any]:
    """Load the files of a path by their formats."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    tables = []
    for suffix, (builder, settings) in FORMATS.items():
        chosen = [str(file) for file in files if file.suffix.lower() == suffix]
        if chosen:
            with _one_line_errors(str(path)):
                tables.append(load_dataset(builder, data_files=chosen, split="train", **settings))
    if not tables:
        found = ", ".join(sorted({file.suffix or file.name for file in files})) or "no file"
        raise UsageError(f"long_ppl: data {str(path)!r} must hold files of {', '.join(FORMATS)}; found {found}")
    return tables


def _from_hub(source: Source) -> Any:
    name = source.data
    if name.startswith(("/", ".", "~")) or Path(name).suffix in FORMATS or name.count("/") > 1:
        raise UsageError(f"long_ppl: there is no file or folder {name!r}, which data names")
    if "/" not in name and name not in NAMED:
        raise UsageError(
            f"{unknown_name('long_ppl data', name, NAMED)}; or a file, a folder, or owner/name of a data set on the hub"
        )
    where = {"path": name, **NAMED.get(name, {})}
    if source.split is not None:
        where["split"] = source.split
    with _one_line_errors(name):
        return load_dataset(**where, name=source.subset)


def _only_split(source: Source, table: DatasetDict) -> Dataset:
    if source.split is None and len(table) == 1:
        return next(iter(table.values()))
    if source.split not in table:
        raise UsageError(
            f"long_ppl: split must be one of {', '.join(table)} for data {source.data!r}; found {source.split!r}"
        )
    return table[source.split]


def _text_column(source: Source, table: Dataset) -> str:
    texts = [name for name, feature in table.features.items() if getattr(feature, "dtype", "") in _TEXT_TYPES]
    column = source.column
    if column is None:
        column = "text" if "text" in texts else texts[0] if len(texts) == 1 else None
    if column is None or column not in texts:
        raise UsageError(
            f"long_ppl: column must be one of {', '.join(texts) or '(none holds text)'} for data {source.data!r}; "
            f"found {column!r}"
        )
    return column


@contextmanager
def _one_line_errors(source: str) -> Iterator[None]:
    """Turn what `datasets` raises for a source that it cannot find or read, of many types, into one line."""
    try:
        yield
    except Exception as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise UsageError(f"long_ppl: cannot read data {source!r}: {reason}") from None
