"""The versions of transformers that this release was tested with; under others, methods are tried out on each model.

What older ones of them compute wrongly is refused: `families` asks for `GEMMA2_CAPS`, and a call from a `generate` that
has dropped its cache (Phi-3 at its training length before 5.20) is found out by `growing_cache`.
"""

import transformers

OLDEST_TESTED = "5.17"
NEWEST_TESTED = "5.23"
GEMMA2_CAPS = "5.22"  # from here on Gemma 2's scores are soft-capped whatever computes its attention


def is_tested() -> bool:
    """Return whether the installed transformers is among them; releases that only mend errors are."""
    return _release(OLDEST_TESTED) <= _release(transformers.__version__) <= _release(NEWEST_TESTED)


def is_before(release: str) -> bool:
    """Return whether the installed transformers is older than a release, "5.22" for example."""
    return _release(transformers.__version__) < _release(release)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".")[:2])
