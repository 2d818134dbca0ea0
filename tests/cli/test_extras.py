"""What is said where the pipelines' packages are missing."""

import pytest

from mesa_lm.cli.extras import pipelines_needed
from mesa_lm.errors import UsageError


def test_a_missing_package_is_named_with_the_remedy():
    with pytest.raises(UsageError, match=r'^this command needs no_such_package: pip install "mesa-lm\[pipelines\]"$'):
        with pipelines_needed():
            import no_such_package  # noqa: F401
