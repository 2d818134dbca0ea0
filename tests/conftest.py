"""Shared set-up: no network, one thread, deterministic hypothesis runs, a tiny random model."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

import hypothesis
import pytest
import torch
from gang import Gang
from tiny_models import tiny_model

hypothesis.settings.register_profile("default", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("default")
torch.set_num_threads(1)


@pytest.fixture
def llama() -> torch.nn.Module:
    """A tiny Llama with a training length of 41 tokens."""
    return tiny_model()


@pytest.fixture(scope="session")
def gang(tmp_path_factory):
    """Four processes that share prompts; a test may use fewer of them."""
    started = Gang(4, tmp_path_factory.mktemp("gang"))
    yield started
    started.close()
