"""Scores from hidden states and an output layer applied by blocks equal those from whole logits."""

import pytest
import torch
import transformers
from tiny_models import FAMILIES, tiny_model
from word_model import requests, text

from mesa_lm.harness import log_likelihood, scoring
from mesa_lm.harness.log_likelihood import SOFTMAX_BLOCK, continuation_score, find_head, states_as_logits
from mesa_lm.harness.model import MesaHFLM

TOKENS = torch.arange(31)[None] % 13


@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_head_give_the_logits(family: str) -> None:
    model = tiny_model(family)
    head = find_head(model, 1)
    assert head is not None
    with torch.no_grad():
        whole = model(TOKENS).logits[0]
        with states_as_logits(model.get_output_embeddings()):
            states = model(TOKENS).logits[0]
        assert states.shape == (31, 24)
        torch.testing.assert_close(head(states), whole)
        assert torch.equal(model(TOKENS).logits[0], whole)
        wanted = TOKENS[0].tolist()
        found, expected = continuation_score(states, wanted, head=head), continuation_score(whole, wanted)
    assert found == pytest.approx(expected)


def test_capped_logits_are_not_taken_for_the_output_layers() -> None:
    config = transformers.Gemma2Config(
        vocab_size=59,
        hidden_size=24,
        intermediate_size=37,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=6,
    )
    assert find_head(transformers.Gemma2ForCausalLM(config), 1) is None


def test_the_output_layer_is_restored_after_an_error() -> None:
    layer = torch.nn.Linear(2, 3)
    layer.forward = hooked = lambda states: states + 1
    with pytest.raises(KeyError), states_as_logits(layer):
        raise KeyError
    assert layer.forward is hooked


@pytest.mark.parametrize("method", ["mesa", "origin", "rerope"])
def test_logits_exist_for_a_block_at_a_time(model_path, method, monkeypatch) -> None:
    asked = requests("loglikelihood_rolling", (text(397, 5),), (text(31, 5),))
    whole = MesaHFLM(pretrained=model_path, method=method, batch_size=2).loglikelihood_rolling(asked)
    monkeypatch.setattr(log_likelihood, "SOFTMAX_BLOCK", 23)
    monkeypatch.setattr(scoring, "SOFTMAX_BLOCK", 23)
    monkeypatch.setattr(scoring, "STOCK_LOGITS_BYTES", 0)
    model = MesaHFLM(pretrained=model_path, method=method, batch_size=2)
    model.loglikelihood_rolling(asked)  # finds out once what makes logits of hidden states
    shapes = []
    model.model.lm_head.register_forward_hook(lambda layer, inputs, output: shapes.append(tuple(output.shape)))
    assert model.loglikelihood_rolling(asked) == pytest.approx(whole, rel=1e-5)
    assert {shape[-1] for shape in shapes if len(shape) == 2} == {56}
    assert max(shape[0] for shape in shapes if len(shape) == 2) == 23
    assert all(len(shape) == 2 or shape[-1] == 44 for shape in shapes)


@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_continuation_score_goes_by_blocks(dtype: torch.dtype | None) -> None:
    torch.manual_seed(3)
    scores = torch.randn(2 * SOFTMAX_BLOCK + 17, 13)
    continuation = scores.argmax(-1).tolist()
    log_probs = scores.log_softmax(-1, dtype=dtype)
    score, greedy = continuation_score(scores, continuation, dtype)
    assert greedy
    assert score == pytest.approx(float(log_probs.max(-1).values.sum()), rel=1e-6)
    continuation[SOFTMAX_BLOCK + 1] = int(scores[SOFTMAX_BLOCK + 1].argmin())
    assert not continuation_score(scores, continuation, dtype)[1]
