"""Commands that need more than a plain installation has."""

from collections.abc import Iterator
from contextlib import contextmanager

from mesa_lm.errors import UsageError


@contextmanager
def pipelines_needed() -> Iterator[None]:
    """Import modules of the pipelines inside.

    Raises:
        UsageError: What they need is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise UsageError(f'this command needs {error.name}: pip install "mesa-lm[pipelines]"') from error
