"""The demo model's training runs, and is the same each time."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mesa_lm.pipelines.development import train_demo_model
from mesa_lm.pipelines.development.train_demo_model import Phase
from mesa_lm.tasks.long_ppl.embedded_text import standard_library


@pytest.fixture
def short_training(monkeypatch):
    """Two phases of two steps, on the first files of the library."""
    texts = standard_library(held_out=False)[:20]
    monkeypatch.setattr(train_demo_model, "standard_library", lambda held_out: texts)
    monkeypatch.setattr(train_demo_model, "PHASES", (Phase(2, 2e-3, 0.0), Phase(2, 1e-3, 0.6)))
    monkeypatch.setattr(train_demo_model, "STEP_TOKENS", 3000)


@pytest.mark.usefixtures("short_training")
def test_a_short_training_saves_a_model_a_tokenizer_and_a_log(tmp_path):
    for name in ("first", "second"):
        train_demo_model.train(tmp_path / name, threads=1)
    first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("first", "second"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.config.max_position_embeddings == train_demo_model.TRAIN_LENGTH
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first")
    assert tokenizer("407")["input_ids"] == [0, *tokenizer.convert_tokens_to_ids(["4", "0", "7"])]
    log = json.loads((tmp_path / "first" / "training_log.json").read_text())
    assert [(entry["phase"], entry["step"]) for entry in log] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert all(entry["text_loss"] > 1 and entry["passkey_loss"] > 1 for entry in log)
