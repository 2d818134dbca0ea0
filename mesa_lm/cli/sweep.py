"""The command `mesa-lm sweep`."""

from pathlib import Path
from typing import Annotated

import typer

from mesa_lm.cli.extras import pipelines_needed


def sweep(
    configuration: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; see docs/pipeline.md.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Replace a setting: name=value; may be given again.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder, instead of the file's.", show_default=False)] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster: auto, or ray://HOST:10001. Default: one on this machine.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the shards and what they cost, and stop.")] = False,
    tokens_per_s: Annotated[
        float, typer.Option(min=1, help="Tokens per second and GPU, for the estimate of --dry-run.")
    ] = 5000.0,
) -> None:
    """Evaluate models x methods x tasks x lengths on a Ray cluster.

    What an earlier run finished is not run again. Exit status 1 if a shard failed for good.
    """
    with pipelines_needed():
        from mesa_lm.pipelines import command
    raise typer.Exit(command.sweep(configuration, overrides or [], out, address, dry_run, tokens_per_s))
