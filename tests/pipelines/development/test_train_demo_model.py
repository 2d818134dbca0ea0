"""The demo model's training runs, and is the same each time."""

import json

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer

from mesa_lm.demo import MODEL_PATH
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
@pytest.mark.parametrize("recipe", train_demo_model.RECIPES)
def test_a_short_training_saves_a_model_a_tokenizer_and_a_log(tmp_path, recipe):
    for name in ("first", "second"):
        train_demo_model.train(tmp_path / name, recipe=recipe, hidden_size=64, threads=1)
    first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("first", "second"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.config.max_position_embeddings == train_demo_model.TRAIN_LENGTH
    assert first.config.hidden_size == 64
    assert first.config.vocab_size == train_demo_model.RECIPES[recipe].vocab_size
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "first")
    assert tokenizer("407")["input_ids"] == [0, *tokenizer.convert_tokens_to_ids(["4", "0", "7"])]
    log = json.loads((tmp_path / "first" / "training_log.json").read_text())
    assert [(entry["phase"], entry["step"]) for entry in log] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert all(entry["text_loss"] > 1 and entry["question_loss"] > 1 for entry in log)


def test_the_model_that_ships_has_the_size_of_its_recipe():
    shipped = AutoModelForCausalLM.from_pretrained(MODEL_PATH).config
    made = train_demo_model.untrained_model(train_demo_model.RECIPES["passkey"].vocab_size, 128).config
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"):
        assert getattr(made, name) == getattr(shipped, name)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"recipe": "mixd"}, "did you mean 'mixed'"), ({"hidden_size": 100}, "a multiple of 32; found 100")],
)
def test_wrong_options_are_refused(tmp_path, options, message):
    with pytest.raises(typer.BadParameter, match=message):
        train_demo_model.train(tmp_path, **options)
