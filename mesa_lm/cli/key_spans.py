"""The `mesa-lm key-spans` command; everything heavy is imported when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from mesa_lm.cli.progress import shown_progress
from mesa_lm.errors import UsageError


def key_spans(
    model: Annotated[
        str | None,
        typer.Option(help="The evaluator: folder or name on the hub. Default: the demo model.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="File, folder or data set, as for long_ppl. Default: the embedded text.", show_default=False),
    ] = None,
    subset: Annotated[str | None, typer.Option(help="Of a data set on the hub.", show_default=False)] = None,
    split: Annotated[str | None, typer.Option(help="Of a data set on the hub.", show_default=False)] = None,
    column: Annotated[str | None, typer.Option(help="Column that holds the text.", show_default=False)] = None,
    num_samples: Annotated[int, typer.Option(min=1, help="Documents.")] = 20,
    length: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of a document that the evaluator is given. Default: all.", show_default=False),
    ] = None,
    trunc_len: Annotated[int, typer.Option(min=1, help="Tokens of the short context.")] = 4096,
    stride: Annotated[int, typer.Option(min=1, help="Tokens that have one short context in common.")] = 1024,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("key_spans.json"),
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; auto: cuda if there is one.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 ...; auto: as the weights are.")] = "auto",
) -> None:
    """Find the tokens that long context helps to predict, for LongPPL.

    A token is key where the evaluator's loss given only the text shortly before it exceeds its loss given everything
    by more than 2 nats, and the latter is below 2. `lm_eval --tasks long_ppl --metadata '{"key_spans": FILE}'` then
    has the perplexity of these tokens alone, `key_ppl`, for any model and method.
    """
    if data is None and (subset or split or column):
        raise UsageError("key-spans: --subset, --split and --column need --data")
    with shown_progress() as progress:
        progress("loading the model")
        from mesa_lm.reporting.files import make_folder, save_file
        from mesa_lm.studies.key_spans.contrast import find_key_spans
        from mesa_lm.tasks.long_ppl.sources import Source

        make_folder(out.parent)
        found = find_key_spans(
            model=model,
            source=Source(data, subset, split, column) if data else None,
            num_samples=num_samples,
            length=length,
            trunc_len=trunc_len,
            stride=stride,
            device=device,
            dtype=dtype,
            progress=progress,
        )
    save_file(out, found.as_json())
    spans = sum(len(document.spans) for document in found.documents)
    print(f"{out}: {spans} key spans in {len(found.documents)} documents")
