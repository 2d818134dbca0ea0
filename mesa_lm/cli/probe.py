"""The `mesa-lm probe` command; everything heavy is imported when it runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mesa_lm.errors import UsageError

DEFAULT_WORD = "hello"


def probe(
    model: Annotated[
        str | None,
        typer.Option(help="Folder or name on the hub. Default: the demo model.", show_default=False),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Method to probe; may be given again. Default: every method.", show_default=False),
    ] = None,
    word: Annotated[
        str | None, typer.Option(help=f"Word or sentence to repeat. Default: {DEFAULT_WORD}.", show_default=False)
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="File whose text to feed instead of a word.", show_default=False)
    ] = None,
    multiple: Annotated[int, typer.Option(min=2, help="Length of the input, in training lengths.")] = 4,
    layers: Annotated[
        str | None,
        typer.Option(help="Layers to search, from 0, such as 0,3. Default: every layer.", show_default=False),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Dimensions that make the prediction.")] = 9,
    samples: Annotated[int, typer.Option(min=0, help="Questions and texts to measure with; 0 measures nothing.")] = 6,
    results: Annotated[
        Path | None,
        typer.Option(
            help="Take passkey accuracy from results of `lm_eval --output_path` instead of measuring it.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and probe.json.")] = Path("probe"),
    in_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Predict from hidden states at which length each method fails, and measure it.

    Finds the dimensions whose value jumps at the training length under `origin`, and reports where each method takes
    them past the threshold. Writes probe.json, and pictures as PNG and SVG, to a folder.
    """
    if word is not None and text is not None:
        raise UsageError("probe: give --word or --text, not both")
    from rich.console import Console

    from mesa_lm.studies.probe.figures import draw_all
    from mesa_lm.studies.probe.report import as_json, print_tables
    from mesa_lm.studies.probe.run import run

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be created: {error.strerror or error}") from error
    with Console(stderr=True).status("loading the model") as status:
        report = run(
            model=model,
            names=method or [],
            word=DEFAULT_WORD if word is None else word,
            text=text,
            multiple=multiple,
            layers=layers,
            top=top,
            samples=samples,
            results=results,
            progress=status.update,
        )
    saved = json.dumps(as_json(report), indent=2)
    (out / "probe.json").write_text(saved + "\n", encoding="utf-8")
    draw_all(report, out)
    if in_json:
        print(saved)
    else:
        print_tables(report)
