"""The versions of transformers that this release was tested with; under others, methods are tried out on each model."""

import transformers

OLDEST_TESTED = "5.23"
NEWEST_TESTED = "5.23"


def is_tested() -> bool:
    """Return whether the installed transformers is among them; releases that only mend errors are."""
    return _release(OLDEST_TESTED) <= _release(transformers.__version__) <= _release(NEWEST_TESTED)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".")[:2])
