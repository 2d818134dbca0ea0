"""The command `mesa-lm theory`."""

from pathlib import Path
from typing import Annotated

import typer


def theory(
    max_length: Annotated[
        int, typer.Option("--max-length", "-M", help="M: tokens past which the output without weave falls below H.")
    ] = 64,
    near: Annotated[
        int | None,
        typer.Option(
            "--extrapolated-position",
            "-N",
            help="N: tokens up to which weaves keep distances, below M. Default: M/4.",
            show_default=False,
        ),
    ] = None,
    width: Annotated[int, typer.Option("--extrapolated-width", "-E", help="E: tokens per step of Stair PE.")] = 8,
    threshold: Annotated[float, typer.Option("--threshold", "-H", help="H: the threshold of the output.")] = 0.5,
    length: Annotated[int, typer.Option(help="Tokens of the input, above M.")] = 4096,
    out: Annotated[Path, typer.Option(help="Folder for theory.png, theory.svg and theory.json.")] = Path(),
) -> None:
    """Run the paper's theorems: constructed transformers without weave fail past M, with it they go on.

    Builds the weights, runs them in float64 and prints the outputs o_t, where they fall to the threshold H, and up to
    where the weaves provably stay above it. Draws o_t against t.
    """
    from rich.console import Console
    from rich.table import Table

    from mesa_lm.studies.theory.constructions import MAX_POSITION
    from mesa_lm.studies.theory.output_figure import save_outputs
    from mesa_lm.studies.theory.outputs import Parameters, curves

    parameters = Parameters(
        max_length=max_length,
        near=max(1, max_length // 4) if near is None else near,
        width=width,
        threshold=threshold,
        length=length,
    )
    found, failure = curves(parameters), parameters.woven_failure()
    paths = save_outputs(parameters, found, failure, out)
    table = Table("o_t at t =", *(curve.name for curve in found))
    for t in parameters.shown:
        # Adding 0.0 turns a rounded -0.0 into 0.
        table.add_row(str(t), *(f"{round(curve.output[t - 1].item(), 6) + 0.0:.6g}" for curve in found))
    table.add_section()
    table.add_row("first t > M not above H", *(str(curve.falls_at or f"not up to {length}") for curve in found))
    table.add_row(
        "proved above H for M < t <",
        *("-" if curve.guaranteed is None else f"{curve.guaranteed:.6g}" for curve in found),
    )
    Console().print(table)
    print(f"M = {max_length}, N = {parameters.near}, E = {width}, H = {threshold:g}")
    for curve in found:
        if curve.out_of_range_at is not None:
            print(
                f"{curve.name}: from t = {curve.out_of_range_at} on, layer 1 reads {MAX_POSITION}, "
                "the largest position that float64 resolves"
            )
    first = "beyond 1e300" if failure.first is None else f"{failure.first:.7g}"
    print(f"ReRoPE weave fails in turn at t = {first}")
    print(f"  were layer 1 saturated at N + 1 = {parameters.near + 1}: {failure.guaranteed:.7g}, a proved lower bound")
    print(f"  roughly M e^N: {failure.rough:.7g}")
    for path in paths:
        print(path)
