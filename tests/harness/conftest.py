"""What the tests of the lm-eval model and task manager share."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval.utils
import made_up_tasks
import pytest
import word_model
from lm_eval.__main__ import cli_evaluate


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("models") / "tiny-llama")
    word_model.save_model(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder of tasks."""
    return made_up_tasks.save_tasks(tmp_path)


class Ended:
    """How a command ended.

    Attributes:
        status: Of the process.
        out: What it printed on stdout.
        err: And on stderr, without logs of warnings.
    """

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Any]:
    """Run the command in this process, in a folder of its own that is no repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("LMEVAL_LOG_LEVEL", raising=False)
    logger = logging.getLogger("lm_eval")

    def run(*arguments: str) -> Ended:
        capfd.readouterr()
        handler = logging.StreamHandler()  # to the present stderr
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["lm_eval", *arguments])
            patch.setattr(lm_eval.utils, "_LOGGING_CONFIGURED", True)
            logger.addHandler(handler)
            try:
                cli_evaluate()
                status = 0
            except SystemExit as ended:
                status = int(ended.code or 0)
            finally:
                logger.removeHandler(handler)
        captured = capfd.readouterr()
        return Ended(status, captured.out, captured.err)

    level = logger.level
    yield run
    logger.setLevel(level)
