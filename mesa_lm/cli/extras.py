"""Commands that need more than a plain installation has."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from mesa_lm.errors import UsageError, lost_link, unknown_name

PIPELINES = Path(__file__).parents[1] / "pipelines"


@contextmanager
def pipelines_needed() -> Iterator[None]:
    """Import modules of the pipelines inside.

    Raises:
        UsageError: They, or what they need, are not installed.
    """
    if not PIPELINES.is_dir():
        raise lost_link(PIPELINES)
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "mesa_lm":
            raise  # a fault of ours, which no installation mends
        raise UsageError(f'this command needs {error.name}: pip install "mesa-lm[pipelines]"') from error


def print_example(name: str | None) -> None:
    """Print a sweep file that comes with the package, and end the command.

    Raises:
        UsageError: There is none of that name.
    """
    if name is None:
        return
    with pipelines_needed():
        files = [*PIPELINES.glob("*.yaml"), *PIPELINES.glob("paper/*.yaml")]
        examples = {path.stem: path for path in files}
    if name not in examples:
        raise UsageError(unknown_name("example", name, examples))
    print(examples[name].read_text(encoding="utf-8"), end="")
    raise typer.Exit
