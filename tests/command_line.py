"""Run the command mesa-lm."""

import subprocess
import sys

from typer.testing import CliRunner, Result

from mesa_lm.cli import main as cli


def run(*arguments: object) -> Result:
    return CliRunner().invoke(
        cli.app, [str(argument) for argument in arguments], prog_name="mesa-lm", catch_exceptions=False
    )


def in_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from mesa_lm.cli.main import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)
