"""Whatever is typed, and whatever files hold: right numbers, or one line and the documented exit status."""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from hypothesis import given, settings
from hypothesis import strategies as st
from made_results import save_results

from mesa_lm.errors import MesaError

LENGTHS = (512, 1024)
RIGHT = {"mesa": {512: 8, 1024: 7}, "origin": {512: 8, 1024: 2}}  # of 8
ODD: list[Any] = [
    *(None, True, False, -1, 0, 0.5, 1.5, 3, -0.25, 10**30, 10**400, math.nan, math.inf, 1e300, 2**63),
    *("", "512", "yesterday", "a/b", "N/A", "\u001b[31m", "\ud800", "$x_$", "[/red]", "a|b", "x" * 500, "passkey_9k"),
    *([], [1], ["keys_512"], {}, {"length": "512"}, {"keys_512": 1}, [[[[[]]]]]),
]
WORDS = [
    *("", " ", "mesa", "mesaa", "mesa,window=3", "mesa,chunk_width=", ",", "=", "acc", "nll", "keys", "0", "-1", "1e9"),
    *(
        "nan",
        "inf",
        "4k",
        "4k,4k",
        "99999999999999999999",
        "\N{SNOWMAN}",
        "--json",
        "--help",
        "::mesa",
        "out.png",
        "x.html",
    ),
    *("length", "depth", "position", "cpu", "banana", "float32", "llama-2-7b", "true", "[bold]"),
]


def made(folder: Path) -> None:
    """Results of two methods, whose numbers are known."""
    for method, right in RIGHT.items():
        scores = {length: {f"doc{i}": float(i < n) for i in range(8)} for length, n in right.items()}
        save_results(folder, method, scores)
        save_results(folder, method, {512: {"a": 2.5, "b": 3.5}}, metric="nll", task="text")


def status(*arguments: object) -> int:
    """Run a command and return its exit status, after a look at what it said."""
    try:
        result = run(*arguments)
    except MesaError as error:  # which `main` prints behind "error: "
        assert str(error) and len(str(error).splitlines()) == 1, error
        assert len(str(error)) < 2000
        for jargon in ("Traceback", "constrained-", "valid tuple", "Input should", "dtype=object"):
            assert jargon not in str(error)
        return 2
    said = [line for line in result.stderr.splitlines() if line.startswith(("error: ", "damaged, left out: "))]
    if result.exit_code == 2 and arguments:
        assert len(said) == 1 and said[0].startswith("error: ") and not result.stdout, result.output
    if result.exit_code == 1:
        assert said and "Input should" not in result.stderr
    assert result.exit_code in (0, 1, 2)
    return result.exit_code


def paths_in(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values of some JSON."""
    below = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(found for key, value in below for found in paths_in(value, (*path, key)))]


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The same JSON with one value in the place of another."""
    if not path:
        return value
    copy = dict(content) if isinstance(content, dict) else list(content)
    copy[path[0]] = changed(content[path[0]], path[1:], value)
    return copy


@pytest.mark.parametrize("command", ["leaderboard", "compare", "plot"])
@settings(max_examples=15)
@given(data=st.data())
def test_a_results_file_with_anything_in_it_gives_right_numbers_or_is_named(command: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made(folder / "in")
        path = folder / "in" / "results_keys_mesa.json"
        content = json.loads(path.read_text()) | {"sweep": {"out_of_memory": ["keys_2k"], "costs": {}}}
        place = data.draw(st.sampled_from(paths_in(content)[1:]))
        path.write_text(json.dumps(changed(content, place, data.draw(st.sampled_from(ODD)))))
        board, page = folder / "board.json", folder / "board.html"
        arguments = {
            "leaderboard": (folder / "in", "--json", board, "--html", page, "--csv", folder / "board.csv"),
            "compare": (f"{folder / 'in'}::origin", f"{folder / 'in'}::origin"),
            "plot": (folder / "in", "--task", "keys", "--out", folder / "x.svg"),
        }[command]

        done = status(command, *arguments)

        if command != "leaderboard":
            return
        assert done in (0, 1)
        entries = {(entry["model"], entry["method"], entry["task"]): entry for entry in json.loads(board.read_text())}
        points = entries["org/base", "origin", "keys"]["points"]
        assert [(point["length"], point["value"], point["samples"]) for point in points] == [
            (length, right / 8, 8) for length, right in RIGHT["origin"].items()
        ]
        for entry in entries.values():
            assert all(0 <= point["value"] <= 4 for point in entry["points"])
            assert entry["p_best"] is None or 0 < entry["p_best"] <= 1


@settings(max_examples=15)
@given(data=st.data())
def test_samples_with_anything_in_them_give_right_numbers_or_are_named(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made(folder)
        path = folder / "samples_keys_512_keys_mesa.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        place = data.draw(st.sampled_from(paths_in(lines)[1:]))
        lines = changed(lines, place, data.draw(st.sampled_from(ODD)))
        path.write_text("\n".join(map(json.dumps, lines)))

        assert status("leaderboard", folder, "--json", folder / "board.json", "--html", folder / "board.html") in (0, 1)
        assert status("compare", f"{folder}::mesa", f"{folder}::origin") in (0, 2)


@settings(max_examples=30)
@given(content=st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_a_file_of_anything_is_named_or_skipped(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made(folder)
        (folder / "results_x.json").write_bytes(content)
        assert status("leaderboard", folder) in (0, 1)


OPTIONS = {
    "plot": ("--out", "--metric", "--task", "--by", "--length", "--strict"),
    "compare": ("--metric", "--task", "--json"),
    "leaderboard": ("--html", "--md", "--csv", "--json", "--baseline", "--fail-on-regression", "--strict"),
    "methods": ("--json", "--families"),
    "track": ("--project", "--group", "--entity", "--folder", "--mode"),
    "bench": (
        *("--shape", "--method", "--lengths", "--dtype", "--batches", "--repeats", "--steps", "--device", "--threads"),
        *("--memory-limit", "--json", "--no-memory"),
    ),
    "probe": ("--method", "--word", "--text", "--multiple", "--layers", "--top", "--samples", "--results", "--json"),
    "theory": ("-M", "-N", "-E", "-H"),
}
# So that nothing is measured: with what is typed right, these are what is wrong.
ENDS = {"bench": ("--model", "./missing"), "probe": ("--model", "./missing"), "theory": ("--length", "9")}


@pytest.mark.parametrize("command", sorted(OPTIONS))
@settings(max_examples=30)
@given(data=st.data())
def test_any_arguments_give_success_or_one_line(command: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.chdir(name)
        patch.setenv("WANDB_MODE", "disabled")
        made(Path("results"))
        places = ["results", "results::mesa", "results::origin", "nowhere", "out.png", "", "::", "results::"]
        typed = data.draw(st.lists(st.sampled_from([*OPTIONS[command], *WORDS, *places]), max_size=5))
        assert status(command, *typed, *ENDS.get(command, ())) in (0, 1, 2)
