"""Commands that need more than a plain installation has."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mesa_lm.errors import UsageError, lost_link


@contextmanager
def pipelines_needed() -> Iterator[None]:
    """Import modules of the pipelines inside.

    Raises:
        UsageError: They, or what they need, are not installed.
    """
    folder = Path(__file__).parents[1] / "pipelines"
    if not folder.is_dir():
        raise lost_link(folder)
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "mesa_lm":
            raise  # a fault of ours, which no installation mends
        raise UsageError(f'this command needs {error.name}: pip install "mesa-lm[pipelines]"') from error
