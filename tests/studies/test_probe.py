"""The probe: recorded states, jumps and crossings, measured failure, and the command."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from character_tokenizer import tiny_tokenizer
from command_line import run
from drawn_texts import faults
from matplotlib.figure import Figure
from tiny_models import tiny_model
from transformers import PreTrainedModel
from typer.testing import Result

import mesa_lm
from mesa_lm.errors import MethodError, ModelError, UsageError
from mesa_lm.studies.probe.figures import failure_figure, heat_figure, save_figures, values_figure
from mesa_lm.studies.probe.findings import Findings
from mesa_lm.studies.probe.measure import FailureCurve
from mesa_lm.studies.probe.predict import Jump, crossing, find_jumps, predicted_length
from mesa_lm.studies.probe.profile import Profile, chosen_layers, decoder_layers, record

T = 41
TOKENS = torch.randint(2, 59, (101,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model(train_length=T, vocab_size=101).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def states(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """Return the states after each layer but the last, which transformers gives normalised, (layers, len, hidden)."""
    with torch.no_grad():
        hidden = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    return torch.cat(hidden[1:-1])


def profile(*rows: list[float], layer: int = 0) -> Profile:
    """Return one layer whose dimensions have these values, one for each block of two tokens."""
    blocks = len(rows[0])
    values = torch.tensor(rows).T[None]
    return Profile(values=values, layers=[layer], starts=list(range(0, 2 * blocks, 2)), train_length=32)


WOBBLE = [0.0, 0.1] * 4
FLAT = [1.0] * 40
STEP = WOBBLE * 2 + [2.0 + value for value in WOBBLE * 3]
FALL = [-2 * value for value in STEP]


def test_profile_of_origin_holds_the_means_of_the_models_own_states() -> None:
    model = tiny_model(train_length=T)
    recorded = record(model, mesa_lm.Origin(), TOKENS, [0], T)

    assert recorded.starts == [0, *range(1, 101, 2)]  # T // 16 = 2 tokens, one of the blocks starting at T = 41
    assert recorded.starts[recorded.boundary] == T
    expected = states(model, TOKENS)[0]
    for block, start in enumerate(recorded.starts):
        end = recorded.starts[block + 1] if block + 1 < len(recorded.starts) else len(TOKENS)
        torch.testing.assert_close(recorded.values[0, block], expected[start:end].mean(0))


@pytest.mark.parametrize("name", list(mesa_lm.available_methods()))
def test_profile_of_every_method_covers_each_position(name: str) -> None:
    model = tiny_model(train_length=T)
    recorded = record(model, mesa_lm.make_method(name), TOKENS, [0, 1], T)

    assert recorded.values.shape == (2, 51, 24)
    assert bool(recorded.values.abs().sum(-1).all())
    assert not any(module._forward_hooks for module in model.modules())


def test_profile_of_mesa_puts_states_at_their_input_positions() -> None:
    model = tiny_model(train_length=T)
    recorded = record(model, mesa_lm.Mesa(first_chunk=7, chunk_width=10, last_chunk=11), TOKENS, [0], T)

    # The chunk of positions 27..36 sees the first chunk and itself, as in the sequence of just these tokens.
    expected = states(model, TOKENS[:7] + TOKENS[27:37])[0, 7:]
    block = recorded.starts.index(29)
    torch.testing.assert_close(recorded.values[0, block], expected[2:4].mean(0))


def test_hooks_are_removed_after_an_error() -> None:
    model = tiny_model(train_length=T)
    with pytest.raises(MethodError):
        record(model, mesa_lm.Mesa(first_chunk=T), TOKENS, [0], T)
    with pytest.raises(IndexError):
        record(model, mesa_lm.Origin(), [10**6] * 99, [0], T)

    assert not any(module._forward_hooks for module in model.modules())
    assert "_mesa_handle" not in model.__dict__


def test_decoder_layers_in_order_and_a_model_without_them() -> None:
    model = tiny_model()
    assert decoder_layers(model) == list(model.model.layers)

    model.config.num_hidden_layers = 3
    with pytest.raises(ModelError, match="no list of 3 decoder layers found in a model of type 'llama'"):
        decoder_layers(model)


def test_chosen_layers() -> None:
    assert chosen_layers(None, 3) == [0, 1, 2]
    assert chosen_layers("2, 0", 3) == [0, 2]
    for wrong in ("3", "-1", "x", "", "0;1"):
        with pytest.raises(UsageError, match=f"from 0 to 2, separated by commas; found '{wrong}'"):
            chosen_layers(wrong, 3)


def test_a_training_length_too_short_for_blocks() -> None:
    with pytest.raises(ModelError, match="at least 16 tokens; found 11"):
        record(tiny_model(train_length=11), mesa_lm.Origin(), TOKENS[:40], [0], 11)


def test_jumps_are_ranked_and_their_threshold_lies_at_the_value_at_t() -> None:
    small = [value if value < 1 else value - 1.5 for value in STEP]
    jumps = find_jumps(profile(FLAT, small, FALL, layer=5), top=9)

    assert [(jump.layer, jump.dimension) for jump in jumps] == [(5, 2), (5, 1)]
    assert jumps[0].score > jumps[1].score > 1
    assert jumps[0].below == pytest.approx(-0.1)
    assert jumps[0].above == pytest.approx(-4.1)
    assert jumps[0].threshold == pytest.approx(-2.1)
    assert jumps[0].departure(torch.tensor([-0.1, -2.1, -4.1])).tolist() == pytest.approx([-1, 0, 1])
    assert len(find_jumps(profile(FLAT, small, FALL), top=1)) == 1


def test_score_is_the_difference_in_spreads() -> None:
    (jump,) = find_jumps(profile(STEP), top=1)

    spread = torch.tensor(WOBBLE).std().item()
    assert jump.score == pytest.approx(2.0 / (2 * spread + 1e-3 * 0.05), rel=1e-4)


def test_no_dimension_jumps() -> None:
    with pytest.raises(UsageError, match="no dimension jumps at T=32: the highest score is 0.00"):
        find_jumps(profile(FLAT), top=3)


def test_crossing_must_last_and_counts_from_t_on() -> None:
    jump = Jump(layer=0, dimension=0, score=2.0, below=0.0, above=2.0)
    before = [3.0] * 16  # beyond the threshold, but within T

    assert crossing(profile([*before, 0.0, 2.0, 0.0, 2.0, 2.0]), jump) == 38
    assert crossing(profile([*before, 2.0, 2.0, 0.0]), jump) == 32
    assert crossing(profile([*before, 0.0, 2.0, 0.0, 2.0]), jump) is None
    falling = replace(jump, below=2.0, above=0.0)
    assert crossing(profile([*before, 2.0, 0.0, 0.0]), falling) == 34


def test_predicted_length_is_where_half_the_dimensions_have_crossed() -> None:
    assert predicted_length([700, None, 600]) == 700
    assert predicted_length([700, 600, None, None]) == 700
    assert predicted_length([None, 600, None]) is None
    assert predicted_length([512]) == 512


def findings(**changes: dict[str, FailureCurve]) -> Findings:
    origin, steady = profile(STEP, FALL), profile(FLAT, [0.0] * 40)
    return Findings(
        model="demo",
        text="'hello' repeated",
        train_length=32,
        length=80,
        jumps=find_jumps(origin, 2),
        profiles={"origin": origin, "mesa": steady},
        passkey=changes.get("passkey", {"origin": FailureCurve(values={32: 1.0, 64: 0.0}, failed_at=64)}),
        tail_nll=changes.get("tail_nll", {}),
    )


def test_report_as_json() -> None:
    saved = json.loads(json.dumps(findings().as_json()))

    assert saved["methods"]["origin"] == {
        "predicted": 32,
        "crossings": [32, 32],
        "passkey": {"values": {"32": 1.0, "64": 0.0}, "failed_at": 64},
        "tail_nll": None,
    }
    assert saved["methods"]["mesa"]["predicted"] is None
    assert saved["agreement"] == {"passkey": {"right": 1, "holding": 0, "measured": 1}}
    assert {entry["dimension"] for entry in saved["dimensions"]} == {0, 1}
    assert all(math.isclose(e["threshold"], (e["below"] + e["above"]) / 2) for e in saved["dimensions"])


def test_agreement_needs_both_or_neither_to_fail() -> None:
    fails, holds = FailureCurve(values={}, failed_at=65), FailureCurve(values={}, failed_at=None)

    assert findings().agreement({"origin": fails, "mesa": holds}) == (1, 1, 2)
    assert findings().agreement({"origin": holds, "mesa": fails}) == (0, 1, 2)


def test_pictures_are_the_same_again(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        paths = save_figures(findings(), folder)
        assert [path.name for path in paths] == [
            f"probe_{name}{suffix}" for name in ("values", "heat", "lengths") for suffix in (".png", ".svg")
        ]
    for path in paths:
        assert path.read_bytes() == (folders[0] / path.name).read_bytes()


def test_pictures_show_each_method_with_threshold_and_t() -> None:
    found = findings()
    panels = {axes.get_title(loc="left"): axes for axes in values_figure(found).axes}

    assert list(panels) == ["origin", "mesa"]
    value, threshold, train_length, mark = panels["origin"].lines
    assert value.get_ydata()[0] == pytest.approx(found.profiles["origin"].values[0, 0, found.jumps[0].dimension])
    assert threshold.get_ydata()[0] == pytest.approx(found.jumps[0].threshold)
    assert (train_length.get_xdata()[0], mark.get_xdata()[0]) == (32, 32)
    assert len(panels["mesa"].lines) == 3


@pytest.mark.parametrize("methods", [1, 2, 5, 14])
@pytest.mark.parametrize("draw", [values_figure, heat_figure, failure_figure])
def test_no_text_is_cut_off_or_covers_another(draw: Callable[[Findings], Figure], methods: int) -> None:
    one = findings()
    names = ["origin", *(f"method{index}" for index in range(methods - 1))]
    fails = FailureCurve(values={32: 1.0, 64: 0.0}, failed_at=64)
    holds = FailureCurve(values={32: 1.0}, failed_at=None)
    found = replace(
        one,
        model="organisation/a-model-with-a-long-name-of-7b-parameters",
        profiles=dict.fromkeys(names, one.profiles["origin"]),
        passkey=dict.fromkeys(names, fails),
        tail_nll=dict.fromkeys(names, holds),
    )

    assert faults(draw(found)) == []


def invoke(*arguments: object) -> Result:
    return run("probe", *arguments)


def test_command_writes_everything(saved_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesa_lm.studies.probe.predict.MIN_SCORE", 0.0)
    text = tmp_path / "text.txt"
    text.write_text("Some words, not all alike. " * 20)
    options = ("--model", saved_model, "--text", text, "--multiple", 2, "--samples", 0, "--top", 3, "--out", tmp_path)

    shown = invoke(*options, "--json").stdout
    saved = json.loads((tmp_path / "probe.json").read_text())
    assert json.loads(shown) == saved
    assert list(saved["methods"]) == list(mesa_lm.available_methods())
    assert len(saved["dimensions"]) == 3
    assert (saved["train_length"], saved["length"], saved["agreement"]) == (T, 2 * T, {})
    assert (tmp_path / "probe_heat.svg").exists()

    shown = invoke(*options, "--method", "mesa", "--layers", "1", "--device", "cpu", "--dtype", "bfloat16").stdout
    assert "origin" in shown and "mesa" in shown and "rerope" not in shown
    assert shown.count("not measured") == 4


def test_wrong_input_is_told_in_one_line(saved_model: Path, tmp_path: Path) -> None:
    options = ("--model", saved_model, "--out", tmp_path, "--samples", 0)
    for error, message, wrong in (
        (MethodError, "unknown method 'messa'; did you mean 'mesa'", ("--method", "messa")),
        (UsageError, "layers must be numbers from 0 to 1", ("--layers", "2")),
        (UsageError, "word to repeat must not be empty", ("--word", "")),
        (UsageError, "--word or --text, not both", ("--word", "a", "--text", tmp_path / "x")),
        (UsageError, "cannot be read", ("--text", tmp_path / "x")),
        (UsageError, "no such file", ("--results", tmp_path / "x")),
        (UsageError, r"unknown device 'cdu'; did you mean 'cpu'", ("--device", "cdu")),
        (UsageError, "device 'cpu:1' is not on this machine", ("--device", "cpu:1")),
        (UsageError, "dtype must be auto or one of float32", ("--dtype", "float17")),
    ):
        with pytest.raises(error, match=message) as raised:
            invoke(*options, *wrong)
        assert "\n" not in str(raised.value)
    with pytest.raises(ModelError, match="no model at"):
        invoke("--model", tmp_path / "none", "--out", tmp_path)
    assert invoke(*options, "--multiple", 1).exit_code == 2
