"""The `mesa-lm probe` command; everything heavy is imported when it runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mesa_lm.cli.options import refuse_duplicates
from mesa_lm.cli.progress import shown_progress
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
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; auto: cuda if there is one.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 ...; auto: as the weights are.")] = "auto",
    in_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Predict from hidden states at which length each method fails, and measure it.

    Finds the dimensions whose value jumps at the training length under `origin`, and reports where each method takes
    them past the threshold. Writes probe.json, and pictures as PNG and SVG, to a folder.
    """
    if word is not None and text is not None:
        raise UsageError("probe: give --word or --text, not both")
    refuse_duplicates("--method", method or [])
    with shown_progress() as progress:
        progress("loading the model")
        from mesa_lm.reporting.files import make_folder, save_file
        from mesa_lm.studies.probe.figures import save_figures
        from mesa_lm.studies.probe.findings import print_findings
        from mesa_lm.studies.probe.probe_model import probe_model

        make_folder(out)
        findings = probe_model(
            model=model,
            names=method or [],
            word=DEFAULT_WORD if word is None else word,
            text=text,
            multiple=multiple,
            layers=layers,
            top=top,
            samples=samples,
            results=results,
            device=device,
            dtype=dtype,
            progress=progress,
        )
    saved = json.dumps(findings.as_json(), indent=2)
    save_file(out / "probe.json", saved + "\n")
    save_figures(findings, out)
    if in_json:
        print(saved)
    else:
        print_findings(findings)
