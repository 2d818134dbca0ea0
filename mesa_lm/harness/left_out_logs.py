"""Leave out log messages of other packages that do not apply to this project's model or tasks."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def left_out(logger: str, *phrases: str) -> Iterator[None]:
    """Drop what a logger is told for the duration, where it contains all of some phrases.

    Args:
        logger: Name of the logger.
        *phrases: What such a message contains.
    """

    def is_other(record: logging.LogRecord) -> bool:
        return not all(phrase in record.getMessage() for phrase in phrases)

    logging.getLogger(logger).addFilter(is_other)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(is_other)
