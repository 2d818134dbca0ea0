"""The probe's measurements: where passkeys are lost and where the loss rises, and the input it feeds."""

from pathlib import Path

import pytest
import torch
from character_tokenizer import tiny_tokenizer
from made_results import report, save
from tiny_models import tiny_model

import mesa_lm
from mesa_lm.errors import UsageError
from mesa_lm.studies.probe import measure
from mesa_lm.studies.probe.measure import FailureCurve
from mesa_lm.studies.probe.probe_model import file_tokens, repeated_tokens

T = 41
TOKENS = torch.randint(2, 59, (101,), generator=torch.Generator().manual_seed(0)).tolist()


def test_lengths_to_measure_at() -> None:
    assert measure.lengths_up_to(512, 4) == [512, 645, 813, 1024, 1290, 1625, 2048]
    assert measure.lengths_up_to(512, 3)[-1] == 1290


def test_measuring_stops_at_the_failure() -> None:
    values = {1: 0.9, 2: 0.4, 3: 0.9}

    assert measure.until_failure([1, 2, 3], values.__getitem__, lambda value: value < 0.5) == FailureCurve(
        values={1: 0.9, 2: 0.4}, failed_at=2
    )
    assert measure.until_failure([1, 3], values.__getitem__, lambda value: value < 0.5).failed_at is None


def test_loss_of_the_last_tokens_equals_the_models_own() -> None:
    model = tiny_model(train_length=T)
    rows = [TOKENS[:61], TOKENS[7:68]]
    with torch.no_grad():
        logits = model(torch.tensor(rows)).logits
    wanted = torch.tensor(rows)[:, -20:]
    expected = -logits[:, -21:-1].log_softmax(-1).gather(-1, wanted[..., None]).mean()

    assert measure.tail_nll(model, rows, 20) == pytest.approx(float(expected), rel=1e-5)


def test_answers_do_not_depend_on_the_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model(train_length=T, vocab_size=101), tiny_tokenizer()
    rows = [TOKENS[:30], TOKENS[40:67]]
    together = measure.generate_answers(model, tokenizer, rows)
    monkeypatch.setattr(measure, "BATCH_TOKENS", 1)

    alone = measure.generate_answers(model, tokenizer, rows)
    for left, right in zip(together, alone, strict=True):
        common = min(len(left), len(right))
        assert left[:common] == right[:common]
        assert common > 0


def test_tail_curves_keep_the_scored_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[list[int]]] = []

    def loss(model: object, rows: list[list[int]], tail: int) -> float:
        assert tail == 20
        seen.append(rows)
        return 1.0 if len(rows[0]) <= T else 1.6

    monkeypatch.setattr(measure, "tail_nll", loss)
    subject = measure.Subject(
        model=tiny_model(train_length=T),
        tokenizer=tiny_tokenizer(),
        methods={"origin": mesa_lm.Origin()},
        lengths=[T, 61, 79],
        samples=2,
    )

    assert measure.tail_curves(subject) == {"origin": FailureCurve(values={T: 1.0, 61: 1.6}, failed_at=61)}
    assert [len(rows[0]) for rows in seen] == [T, T, 61]
    assert all(row[0] == 1 for rows in seen for row in rows)
    assert seen[-1][0][-40:] == seen[0][0][-40:]


def accuracies(path: Path, method: str, values: dict[int, float], **arguments: str) -> None:
    """Write what lm-eval would for an accuracy of each length."""
    save(path, report(values, task="passkey_long", model_args={"method": method, **arguments}))


def test_passkey_accuracy_from_results(tmp_path: Path) -> None:
    accuracies(tmp_path / "a.json", "origin", {20: 0.3, 40: 1.0, 80: 0.5, 160: 0.4})
    accuracies(tmp_path / "b.json", "mesa", {40: 1.0, 160: 0.9})
    curves = measure.saved_passkey_curves(tmp_path, ["origin", "mesa", "rerope"], T)

    assert {name: curve.failed_at for name, curve in curves.items()} == {"origin": 160, "mesa": None}
    assert curves["mesa"].values == {40: 1.0, 160: 0.9}


def test_results_that_cannot_be_used(tmp_path: Path) -> None:
    accuracies(tmp_path / "a.json", "origin", {160: 0.4})
    with pytest.raises(UsageError, match="no accuracy of origin at T=41 or below"):
        measure.saved_passkey_curves(tmp_path, ["origin"], T)

    accuracies(tmp_path / "a.json", "origin", {40: 0.4})
    assert measure.saved_passkey_curves(tmp_path, ["origin"], T) == {}

    accuracies(tmp_path / "b.json", "origin", {40: 0.4}, pretrained="other")
    with pytest.raises(UsageError, match="one model are needed; found demo, other"):
        measure.saved_passkey_curves(tmp_path, ["origin"], T)


def test_repeated_tokens_have_the_length_asked_for() -> None:
    tokenizer = tiny_tokenizer()
    tokens = repeated_tokens(tokenizer, "abc", 50)

    assert len(tokens) == 50
    assert tokens == tokenizer("abc " * 20)["input_ids"][:50]
    assert len(repeated_tokens(tokenizer, "a", 301)) == 301
    with pytest.raises(UsageError, match="must not be empty; found ' '"):
        repeated_tokens(tokenizer, " ", 50)


def test_texts_that_cannot_be_used(tmp_path: Path) -> None:
    tokenizer, path = tiny_tokenizer(), tmp_path / "text.txt"
    path.write_text("abc" * 10)

    assert file_tokens(tokenizer, path, 31) == tokenizer("abc" * 10)["input_ids"]
    with pytest.raises(UsageError, match="has 31 tokens, needed are 32"):
        file_tokens(tokenizer, path, 32)
    path.write_text(" \n")
    with pytest.raises(UsageError, match="the text is empty"):
        file_tokens(tokenizer, path, 32)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UsageError, match="cannot be read as text"):
        file_tokens(tokenizer, path, 32)
    with pytest.raises(UsageError, match="cannot be read as text"):
        file_tokens(tokenizer, tmp_path / "none", 32)
