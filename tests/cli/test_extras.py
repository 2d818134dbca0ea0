"""What is said where the pipelines' packages are missing."""

import pytest
from command_line import run

from mesa_lm.cli.extras import PIPELINES, pipelines_needed
from mesa_lm.errors import UsageError


def test_a_missing_package_is_named_with_the_remedy():
    with pytest.raises(UsageError, match=r'^this command needs no_such_package: pip install "mesa-lm\[pipelines\]"$'):
        with pipelines_needed():
            import no_such_package  # noqa: F401


def test_a_fault_of_ours_is_no_missing_package():
    with pytest.raises(ImportError, match="no_such_module"):
        with pipelines_needed():
            import mesa_lm.no_such_module  # noqa: F401


@pytest.mark.parametrize("name", [path.stem for path in PIPELINES.glob("*.yaml")])
def test_sweep_files_that_come_with_the_package_can_be_printed(name):
    shown = run("sweep", "--example", name)
    assert shown.exit_code == 0 and shown.stdout == (PIPELINES / f"{name}.yaml").read_text()


def test_an_unknown_example_is_refused():
    with pytest.raises(UsageError, match="unknown example 'dmo'; did you mean 'demo'"):
        run("sweep", "--example", "dmo")
