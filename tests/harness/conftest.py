"""What the tests of the lm-eval model share."""

import pytest
import word_model


@pytest.fixture(scope="session")
def model_path(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("models") / "tiny-llama")
    word_model.save_model(path)
    return path
