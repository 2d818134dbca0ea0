"""Take reports whose prompts have a given length in tokens, and score their summaries."""

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from rouge_score.rouge_scorer import RougeScorer

from mesa_lm.errors import UsageError
from mesa_lm.harness.task_options import COUNT, TEXT, OptionRules, check_task_options
from mesa_lm.harness.tokenizing import task_encoding

RULES: OptionRules = {"num_samples": COUNT, "bin_width": COUNT, "data": TEXT, "split": TEXT}
# Called with the user's metadata before anything is loaded; the README describes the options.
check_options = partial(check_task_options, "govreport_long", RULES)
# The columns of a report and its summary in the copies that are in use.
COLUMNS = (("report", "summary"), ("document", "summary"), ("input", "output"))
KINDS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
# The instruction of LongBench's gov_report.
PROMPT = (
    "You are given a report by a government agency. Write a one-page summary of the report.\n\nReport:\n{report}\n\n"
    "Now, write a one-page summary of the report.\n\nSummary:"
)
METRICS = ("rouge1", "rouge2", "rougeL")


def reports_dataset(
    *, length: int, num_samples: int, data: str, split: str, bin_width: int, **model_args: Any
) -> dict[str, Dataset]:
    """Take the reports of one length, in the order of the data.

    Args:
        length: The most tokens of a whole prompt as lm-eval feeds it, special tokens included.
        num_samples: How many reports.
        data: A file or folder of json, jsonl, parquet or csv, or the name of a data set on the hub.
        split: Its split; a single file is one whole split, whatever its name.
        bin_width: A prompt has more than `length - bin_width` tokens.
        **model_args: The arguments of the model that name its tokenizer, and others.

    Returns:
        A split `test` with the columns prompt, summary, length (as asked) and tokens (as counted).

    Raises:
        UsageError: An option is wrong, the data cannot be loaded or have other columns, or too few reports have the
            length.
        ModelError: There is no such tokenizer, or it cannot be loaded.
    """
    check_options(model_args | {"num_samples": num_samples, "data": data, "split": split, "bin_width": bin_width})
    count_tokens = task_encoding(model_args).count_prompt
    docs, rows = [], _load(data, split)
    report, summary = _columns(data, rows)
    for row in rows:
        # Prose has about five characters per token; a text with more than twenty need not be tokenized to be left out.
        text = PROMPT.format(report=row[report])
        tokens = count_tokens(text) if len(text) <= 20 * length else 20 * length
        if length - bin_width < tokens <= length:
            docs.append({"prompt": text, "summary": row[summary], "length": length, "tokens": tokens})
        if len(docs) == num_samples:
            return {"test": Dataset.from_list(docs)}
    raise UsageError(
        f"govreport_long: {num_samples} reports asked for, {len(docs)} of the {len(rows)} in {data!r} make a prompt "
        f"of {length - bin_width + 1} to {length} tokens; ask for fewer by num_samples, widen the range by bin_width "
        "or give other data"
    )


@cache
def _load(data: str, split: str) -> Dataset:
    """Load the data by the `datasets` package."""
    path = Path(data).expanduser()
    files = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.suffix in KINDS)
    kinds = {KINDS.get(file.suffix) for file in files}
    if path.exists() and (len(kinds) != 1 or None in kinds):
        raise UsageError(
            f"govreport_long: {data!r} must hold files of one kind ({', '.join(KINDS)}); "
            f"found {', '.join(sorted(file.name for file in files)) or 'none'}"
        )
    try:
        if path.exists():
            return load_dataset(kinds.pop(), data_files=list(map(str, files)), split="train")
        return load_dataset(data, split=split)
    except Exception as error:  # the hub, the network, parsers: dozens of classes, all of them a wrong source
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"govreport_long: cannot load data {data!r}, split {split!r}: {reason}") from error


def _columns(data: str, rows: Dataset) -> tuple[str, str]:
    """Return the columns of report and summary."""
    for pair in COLUMNS:
        if set(pair) <= set(rows.column_names):
            return pair
    allowed = " or ".join(f"{report} and {summary}" for report, summary in COLUMNS)
    raise UsageError(f"govreport_long: {data!r} needs the columns {allowed}; found {', '.join(rows.column_names)}")


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(METRICS, use_stemmer=True)


def score(doc: Mapping[str, Any], results: list[str]) -> dict[str, Any]:
    """Compare a summary with the published one.

    Args:
        doc: The report.
        results: The generated summary.

    Returns:
        `rouge1`, `rouge2`, `rougeL`: F-measures from 0 to 1. `bleu`: reference and summary, which lm-eval joins to
        the BLEU of all samples, 0 to 100.
    """
    found = _scorer().score(doc["summary"], results[0])
    return {**{name: found[name].fmeasure for name in METRICS}, "bleu": (doc["summary"], results[0])}
