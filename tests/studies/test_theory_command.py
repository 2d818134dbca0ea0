"""The command `mesa-lm theory`."""

import json
import math
from pathlib import Path

import pytest
from command_line import in_process, run

from mesa_lm.errors import UsageError


def test_the_command_prints_draws_and_saves(tmp_path: Path) -> None:
    arguments = ("theory", "-M", 5, "-N", 3, "-E", 4, "-H", -1, "--length", 301, "--out", tmp_path / "new")

    result = run(*arguments)

    assert result.exit_code == 0
    assert "fails in turn at t = 287" in result.stdout
    assert result.stdout.splitlines()[-3:] == [
        str(tmp_path / "new" / f"theory.{suffix}") for suffix in ("png", "svg", "json")
    ]
    first = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    saved = json.loads(first["theory.json"])
    assert saved["parameters"] == {"max_length": 5, "near": 3, "width": 4, "threshold": -1.0, "length": 301}
    assert saved["rerope_failure"]["first"] == 287
    assert saved["rerope_failure"]["rough"] == pytest.approx(5 * math.exp(3))
    falls = {curve["name"]: curve["falls_at"] for curve in saved["constructions"]}
    assert (falls["NoPE"], falls["PE"], falls["ReRoPE weave"]) == (6, 6, 287)
    assert dict(saved["constructions"][0]["output"])[301] == pytest.approx(5 / 301 - 2)
    run(*arguments)
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == first


def test_the_command_says_where_float64_ends(tmp_path: Path) -> None:
    result = run("theory", "--length", 720, "--out", tmp_path)

    assert "PE: from t = 700 on, layer 1 reads 700, the largest position that float64 resolves" in result.stdout


@pytest.mark.parametrize("arguments", [("-M", 2, "--length", 3), ("-M", 700, "-N", 699, "--length", 701, "-E", 1)])
def test_the_command_runs_at_the_ends_of_its_ranges(arguments: tuple[object, ...], tmp_path: Path) -> None:
    assert run("theory", *arguments, "--out", tmp_path).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-M", 1), "M (--max-length) must be from 2 to 700 tokens, found 1"),
        (("-M", 701), "M (--max-length) must be from 2 to 700 tokens, found 701"),
        (("-N", 0), "N (--extrapolated-position) must be from 1 to 63 tokens, below M, found 0"),
        (("-N", 64), "N (--extrapolated-position) must be from 1 to 63 tokens, below M, found 64"),
        (("-E", 0), "E (--extrapolated-width) must be from 1 to 16384 tokens, found 0"),
        (("-H", "nan"), "H (--threshold) must be from -1000000 to 1000000 in size, found nan"),
        (("--length", 64), "--length must be from 65 to 16384 tokens, above M, found 64"),
        (("--length", 16385), "--length must be from 65 to 16384 tokens, above M, found 16385"),
    ],
)
def test_wrong_input_is_one_line(arguments: tuple[object, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        run("theory", *arguments, "--out", tmp_path / "none")

    assert str(raised.value) == message
    assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    done = in_process("theory", "-M", 4, "--length", 9, "--out", tmp_path / "file")

    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}/file/theory.png: cannot be written: File exists\n"
