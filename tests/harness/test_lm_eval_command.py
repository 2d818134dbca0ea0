"""How errors end the command `lm_eval`."""

import subprocess
import sys

import pytest

FAIL = """
import sys
sys.argv[0] = {command!r}
from mesa_lm.harness.lm_eval_command import report_errors_in_one_line
from mesa_lm.errors import UsageError
report_errors_in_one_line()
raise {error}
"""


@pytest.mark.parametrize(
    ("command", "error", "one_line"),
    [
        ("/venv/bin/lm_eval", "UsageError('bad')", True),
        ("/venv/bin/lm-eval", "UsageError('bad')", True),
        ("/site-packages/lm_eval/__main__.py", "UsageError('bad')", True),
        ("/venv/bin/lm_eval", "ValueError('bad')", False),
        ("/home/user/script.py", "UsageError('bad')", False),
    ],
)
def test_errors_end_the_command_in_one_line(command: str, error: str, one_line: bool) -> None:
    code = FAIL.format(command=command, error=error)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.endswith("error: bad\n" if one_line else "Error: bad\n")
    assert ("Traceback" in result.stderr) is not one_line
