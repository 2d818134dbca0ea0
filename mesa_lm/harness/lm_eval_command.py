"""How errors of ours end the command `lm_eval`."""

import sys
from pathlib import Path
from types import TracebackType

from mesa_lm.errors import MesaError


def report_errors_in_one_line() -> None:
    """Print a MesaError or Ctrl-C that ends the lm-eval command as one line; nothing else changes."""
    command = Path(sys.argv[0])
    in_command = command.stem in ("lm_eval", "lm-eval") or command.parts[-2:] == ("lm_eval", "__main__.py")
    if in_command and sys.excepthook is sys.__excepthook__:
        sys.excepthook = _print_error


def _print_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if isinstance(error, MesaError):
        print(f"error: {error}", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)  # what is kept has been said where it is known
    else:
        sys.__excepthook__(kind, error, traceback)
