"""The command `mesa-lm sweep`; everything heavy is imported when it runs."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from mesa_lm.cli.extras import pipelines_needed, print_example
from mesa_lm.errors import UsageError
from mesa_lm.lengths import length_label

if TYPE_CHECKING:
    from mesa_lm.pipelines.estimate import Rates
    from mesa_lm.pipelines.live_tracking import LiveTracking
    from mesa_lm.pipelines.outcome import Outcome
    from mesa_lm.pipelines.settings import Sweep
    from mesa_lm.pipelines.shards import Shard

SHOWN_ALIKE = 3  # shards that failed for the same reason, of which the summary names so many


CONFIGURATION = typer.Argument(metavar="CONFIG", help="A YAML file; see docs/pipeline.md.")
OVERRIDES = typer.Option("--set", help="Replace a setting: name=value; may be given again.", show_default=False)
ADDRESS = typer.Option(
    help="Ray cluster: auto, HOST:PORT, or ray://HOST:PORT. Default: one on this machine.", show_default=False
)


def sweep(
    configuration: Annotated[Path, CONFIGURATION],
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder, instead of the file's.", show_default=False)] = None,
    address: Annotated[str | None, ADDRESS] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the shards and what they cost, and stop.")] = False,
    rates: Annotated[
        list[Path] | None,
        typer.Option(
            help="Results of `mesa-lm bench`, by which --dry-run estimates times; may be given again.",
            show_default=False,
        ),
    ] = None,
    tokens_per_s: Annotated[
        float | None,
        typer.Option(min=1, help="One rate for the estimate of --dry-run, instead of --rates.", show_default=False),
    ] = None,
    example: Annotated[
        str | None,
        typer.Option(
            callback=print_example,
            is_eager=True,
            help="Print a sweep file to begin with, such as demo, and exit.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Evaluate models x methods x tasks x lengths on a Ray cluster.

    What an earlier run finished is not run again. Exit status 1 if a shard failed for good.
    """
    with pipelines_needed():
        from mesa_lm.pipelines.sweep_file import load_sweep
    settings = load_sweep(configuration, [*(overrides or []), *([f"out={out}"] if out is not None else [])])
    if dry_run:
        _print_plan(settings, rates or [], tokens_per_s)
    elif rates or tokens_per_s is not None:
        raise UsageError("--rates and --tokens-per-s go with --dry-run")
    elif evaluate(settings, address):
        raise typer.Exit(1)


def evaluate(settings: Sweep, address: str | None) -> bool:
    """Run a sweep, log it to W&B if it says so, and print what became of it.

    Returns:
        Whether something failed.
    """
    with pipelines_needed():
        from mesa_lm.pipelines.run import run_sweep
        from mesa_lm.pipelines.store import Store
    live = _live_tracking(settings)
    try:
        outcome = run_sweep(settings, address, live=live)
    except KeyboardInterrupt:
        kept = Store(settings.out).count_shards()
        print(
            f"interrupted: {kept} finished shards are kept in {settings.out}; the same command goes on from there",
            file=sys.stderr,
        )
        raise
    finally:
        if live is not None:
            live.close()
    if live is not None and outcome.results:
        from mesa_lm.pipelines.live_tracking import settled_mode
        from mesa_lm.pipelines.tracking import log_results

        # Whatever became of W&B meanwhile, the sweep's end does not wait for it.
        mode = settled_mode(live.target)
        log_results([settings.out / "results"], replace(live.target, mode=mode))
    _print_outcome(settings, outcome)
    return bool(outcome.failed or outcome.unwritten)


def _live_tracking(settings: Sweep) -> LiveTracking | None:
    """Begin to log a sweep to W&B where its file says so; without the client it runs all the same."""
    if settings.wandb is None:
        return None
    if find_spec("wandb") is None:
        print("W&B's client is not installed (pip install wandb): results are on disk alone", file=sys.stderr)
        return None
    from mesa_lm.pipelines.live_tracking import LiveTracking
    from mesa_lm.pipelines.tracking import Target

    where = settings.wandb.model_dump()
    group = where.pop("group") or settings.name
    target = Target(group=group, folder=settings.out.absolute() / "tracking", **where)
    return LiveTracking(target) if target.resolved_mode != "disabled" else None


def _print_outcome(settings: Sweep, outcome: Outcome) -> None:
    print(
        f"{outcome.done} shards done, {outcome.reused} of them by an earlier run; {len(outcome.failed)} failed, "
        f"{len(outcome.out_of_memory)} out of memory"
    )
    alike: dict[str, list[Shard]] = {}
    for shard, error in outcome.failed.items():
        alike.setdefault(error, []).append(shard)
    for error, failed in alike.items():
        for shard in failed[:SHOWN_ALIKE]:
            print(f"failed: {shard.described(settings)}: {error} (log: logs/{shard.key}.log)", file=sys.stderr)
        if len(failed) > SHOWN_ALIKE:
            print(f"failed: {len(failed) - SHOWN_ALIKE} more shards: {error}", file=sys.stderr)
    for what, error in outcome.unwritten.items():
        print(f"not written: {what}: {error}; the shards are kept, run the sweep again", file=sys.stderr)
    for result in outcome.results:
        print(result)


def _print_plan(settings: Sweep, rates: list[Path], tokens_per_s: float | None) -> None:
    with pipelines_needed():
        from mesa_lm.pipelines.estimate import Rates, shard_seconds
        from mesa_lm.pipelines.lm_eval_output import printed_to
        from mesa_lm.pipelines.shards import plan_shards
        from mesa_lm.pipelines.store import Store
    if rates and tokens_per_s is not None:
        raise UsageError("give --rates or --tokens-per-s, not both")
    measured = Rates(rates) if rates else None
    with tempfile.TemporaryDirectory() as folder, printed_to(Path(folder) / "log"):
        shards = plan_shards(settings)
        seconds: dict[Shard, float | None] = dict.fromkeys(shards)
        if measured is not None:
            seconds = shard_seconds(settings, shards, measured)
        elif tokens_per_s is not None:
            seconds = {shard: shard.cost / tokens_per_s for shard in shards}
    cells: dict[tuple[int, int, str], list[Shard]] = {}
    for shard in shards:
        cells.setdefault((shard.model, shard.method, shard.leaf), []).append(shard)
    estimated = any(value is not None for value in seconds.values())
    table = Table("model", "method", "task", "length", "shards", "samples", "tokens", title=settings.name)
    if estimated:
        table.add_column("hours")
    for (model, method, leaf), members in sorted(cells.items(), key=lambda cell: (cell[0][:2], cell[1][0].length or 0)):
        length = members[0].length
        table.add_row(
            settings.models[model].name,
            settings.methods[method].label,
            leaf,
            length_label(length) if length else "",
            str(len(members)),
            str(sum(shard.stop - shard.start for shard in members)),
            f"{sum(shard.cost for shard in members):,}",
            *([_hours(seconds[shard] for shard in members)] if estimated else []),
        )
    Console().print(table)
    tokens = sum(shard.cost for shard in shards)
    store = Store(settings.out)
    done = sum(store.read_shard(shard.key) is not None for shard in shards)
    told = _told(settings, seconds, measured, tokens_per_s)
    print(f"{len(shards)} shards, {done} of them done; {tokens:,} tokens; {told}")


def _hours(seconds: Iterable[float | None]) -> str:
    known = [one for one in seconds if one is not None]
    return f"{sum(known) / 3600:.2f}" if known else "?"


def _told(
    settings: Sweep, seconds: Mapping[Shard, float | None], rates: Rates | None, tokens_per_s: float | None
) -> str:
    """Say how long all of it takes, by what that is known, and for what it is not."""
    if rates is None and tokens_per_s is None:
        return "how long is not known: give --rates with results of `mesa-lm bench`, or --tokens-per-s"
    by = f"the rates measured on {', '.join(rates.devices)}" if rates else f"{tokens_per_s:,.0f} tokens per second"
    told = f"about {_hours(seconds.values())} hours of one worker, by {by}"
    unknown = {
        f"{settings.methods[shard.method].label} on {settings.models[shard.model].name}"
        for shard, value in seconds.items()
        if value is None
    }
    return told + (f"; not measured, and left out: {', '.join(sorted(unknown))}" if unknown else "")
