"""The command `lm_eval` where it runs this project's model or tasks: errors in one line, little noise, what to do next.

Exit status: 0 done, 1 the evaluation or the saving of its results failed, 2 wrong input, 130 interrupted.
A command that names nothing of this project's, nor anything like it, is lm-eval's own.
"""

import functools
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

from mesa_lm.errors import MesaError, UsageError
from mesa_lm.harness.command_line import asked_run, refuse_parse_error

# Loggers of ours below lm-eval's, whose few lines are shown where its own are not.
OWN_LOGGERS = ("lm_eval.models.mesa_hf", "lm_eval.tasks.long_ppl")
# Bars of what takes less are not drawn, in seconds.
BAR_DELAY_S = 2.0


def extend_command(harness: ModuleType) -> None:
    """Extend lm-eval's module `_cli.harness`, in place."""
    cli = harness.HarnessCLI
    parse, execute = cli.parse_args, cli.execute

    @functools.wraps(parse)
    def parse_args(self: Any) -> Any:
        asked = asked_run(sys.argv[1:])
        if not asked.resembles_ours:
            return parse(self)
        with _one_line_errors(ours=True):
            asked.check()
            for parser in (self._parser, *self._subparsers.choices.values()):
                parser.error = functools.partial(refuse_parse_error, parser)
            try:
                return parse(self)
            except ValueError as error:  # JSON that cannot be read
                raise UsageError(str(error)) from None

    @functools.wraps(execute)
    def execute_run(self: Any, args: Namespace) -> None:
        asked = asked_run(sys.argv[1:])
        ours = getattr(args, "command", None) == "run" and asked.resembles_ours
        with _one_line_errors(ours):
            if ours:
                _run(functools.partial(execute, self, args), args)
            else:
                execute(self, args)

    cli.parse_args, cli.execute = parse_args, execute_run


def _run(execute: Callable[[], None], args: Namespace) -> None:
    """Check a run before it does anything, and say at its end what it showed."""
    # Imported here: they import lm-eval's evaluation, which other commands need not wait for.
    from mesa_lm.harness.closing_lines import closing_lines, saved_results
    from mesa_lm.harness.command_checks import checked_config
    from mesa_lm.harness.evaluation import latest_evaluation
    from mesa_lm.harness.plugin import MODEL_NAME

    config = checked_config(args)
    is_model_ours = config.model == MODEL_NAME
    with _quiet() if is_model_ours and config.verbosity is None else ExitStack():
        execute()
    evaluation = latest_evaluation()
    if evaluation is None or evaluation.results is None:  # another of several processes has them
        return
    saved = saved_results(evaluation)
    if config.output_path and saved is None:
        _end(f"error: the results, printed above, could not be saved in {config.output_path!r}", 1)
    if is_model_ours:
        print(*closing_lines(evaluation, saved), sep="\n")


@contextmanager
def _quiet() -> Iterator[None]:
    """Show warnings, our own lines and the bar of the requests, not what lm-eval and transformers tell besides."""
    from lm_eval.api import model, task
    from transformers.utils.logging import set_tqdm_hook

    def delayed(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return factory(*args, **{"delay": BAR_DELAY_S, **kwargs})

    with ExitStack() as undo:
        if not os.environ.get("LMEVAL_LOG_LEVEL"):
            for name, level in (("lm_eval", logging.WARNING), *((name, logging.INFO) for name in OWN_LOGGERS)):
                undo.callback(logging.getLogger(name).setLevel, logging.getLogger(name).level)
                logging.getLogger(name).setLevel(level)
        undo.callback(set_tqdm_hook, set_tqdm_hook(delayed))
        for module in (model, task):
            undo.callback(setattr, module, "tqdm", module.tqdm)
            module.tqdm = functools.partial(module.tqdm, delay=BAR_DELAY_S)
        yield


@contextmanager
def _one_line_errors(ours: bool) -> Iterator[None]:
    """End the command with one line where something is wrong.

    Args:
        ours: Whether every error ends so; else our own alone.
    """
    try:
        yield
    except MesaError as error:
        _end(f"error: {error}", 2)
    except KeyboardInterrupt:
        if not ours:
            raise
        _end("interrupted", 130)  # what is kept has been said where it is known
    except Exception as error:
        if not ours or logging.getLogger("lm_eval").isEnabledFor(logging.DEBUG):
            raise
        reason = str(error).strip().split("\n")[0]
        _end(f"error: {type(error).__name__}: {reason}; LMEVAL_LOG_LEVEL=DEBUG shows where", 1)


def _end(line: str, status: int) -> None:
    sys.stdout.flush()
    print(line, file=sys.stderr)
    raise SystemExit(status) from None
