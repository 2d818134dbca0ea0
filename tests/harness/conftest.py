"""What the tests of the lm-eval model and task manager share."""

from pathlib import Path

import made_up_tasks
import pytest
import word_model


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("models") / "tiny-llama")
    word_model.save_model(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder of tasks."""
    return made_up_tasks.save_tasks(tmp_path)
