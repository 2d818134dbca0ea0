"""Where numbers come from: model, code, versions, samples and dates, as results files say it. The one place for it."""

import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from mesa_lm.reporting.lm_eval_files import SHORT_COMMIT, Measurement, ResultsFile

# What is told of a row, in the order of its columns.
PARTS = (
    *("measured", "samples per length", "task version", "model revision", "run as"),
    *("mesa-lm", "commit", "lm-eval", "transformers", "torch"),
)


def column_name(part: str) -> str:
    """Return what one of `PARTS` is called in files."""
    return re.sub(r"\W", "_", part)


def run_provenance(file: ResultsFile) -> dict[str, str]:
    """Return what a results file says of its run, by what it is; what it does not say is left out."""
    content, config, own = file.content, file.config, file.mesa_lm
    torch = re.match(r"PyTorch version: (\S+)", str(content.get("pretty_env_info")))
    revision = str(config.get("model_sha") or config.get("model_revision") or "")
    found = {
        "measured": f"{datetime.fromtimestamp(file.date, UTC):%Y-%m-%d}" if file.date else "",
        "model revision": revision[:SHORT_COMMIT],
        "mesa-lm": own.get("version"),
        "commit": file.commit,
        "lm-eval": content.get("lm_eval_version"),
        "transformers": content.get("transformers_version"),
        "torch": torch[1] if torch else content.get("torch_version"),
        "run as": " on ".join(str(own[key]).removeprefix("torch.") for key in ("dtype", "device") if own.get(key)),
    }
    return {name: str(value) for name, value in found.items() if value}


def row_provenance(points: Collection[Measurement], files: Mapping[Path, ResultsFile]) -> dict[str, str]:
    """Return where the points of one method come from, by what it is; several values of one kind are listed.

    Args:
        points: Rows of one metric of a method.
        files: The results files, by what stands in column `source`.
    """
    runs = [files[path] for path in dict.fromkeys(point.source for point in points)]
    told = listed(run_provenance(run) for run in runs)
    versions = {str((files[point.source].content.get("versions") or {}).get(point.name) or "") for point in points}
    counts = sorted({point.samples for point in points if point.samples is not None})
    samples = " to ".join(map(str, dict.fromkeys(counts[:1] + counts[-1:])))
    extra = {"task version": ", ".join(sorted(filter(None, versions))), "samples per length": samples}
    return told | {name: value for name, value in extra.items() if value}


def listed(found: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return of several runs what each part was, every value once; dates as their range."""
    parts: dict[str, set[str]] = {}
    for one in found:
        for name, value in one.items():
            parts.setdefault(name, set()).add(value)
    dates = sorted(parts.pop("measured", ()))
    told = {"measured": dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"} if dates else {}
    return told | {name: ", ".join(sorted(values)) for name, values in parts.items()}
