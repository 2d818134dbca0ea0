"""The leaderboard's files: complete and safe."""

import csv
import html
import json
import re
import shutil

import command_line
import pandas as pd
import pytest
from made_results import save_results

from mesa_lm.cli.leaderboard import _print_boards
from mesa_lm.errors import UsageError
from mesa_lm.reporting.changes import changes
from mesa_lm.reporting.leaderboard_table import boards
from mesa_lm.reporting.ranking import rank
from mesa_lm.reporting.results import read

EVIL = "</pre><script>document.title='broken'</script>"


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    for method, right in {"mesa": (9, 9), "origin": (9, 1), "rerope": (9, 6)}.items():
        scores = {
            length: {f"doc{i}": float(i < n) for i in range(9)} for length, n in zip((512, 1024), right, strict=True)
        }
        save_results(folder, method, scores, answer=EVIL)
    return folder


def run(*arguments, code=0):
    result = command_line.run("leaderboard", *arguments)
    assert result.exit_code == code, result.output
    return result


def page(results, tmp_path):
    path = tmp_path / "board.html"
    run(results, "--html", path)
    return path


def test_tables_and_files(results, tmp_path):
    paths = {suffix: tmp_path / "out" / f"board.{suffix}" for suffix in ("html", "md", "csv", "json")}
    run(results, *(part for suffix, path in paths.items() for part in (f"--{suffix}", path)))
    assert paths["md"].read_text() == run(results).output
    assert (
        "| 3 | origin | baseline | 512 | 0.556 (0.392 to 0.719) | 1.00 | 0.11 |  | 0.016 |" in paths["md"].read_text()
    )
    rows = list(csv.DictReader(paths["csv"].open()))
    assert [(row["method"], row["length"], row["value"][:4]) for row in rows[-2:]] == [
        ("origin", "512", "1.0"),
        ("origin", "1024", "0.11"),
    ]
    entries = json.loads(paths["json"].read_text())
    assert [entry["method"] for entry in entries] == ["mesa", "rerope", "origin"]
    assert entries[1]["points"][1]["samples"] == 9


def test_the_page_is_self_contained_and_escapes_what_models_say(results, tmp_path):
    text = page(results, tmp_path).read_text()
    assert EVIL not in text and EVIL in html.unescape(text)
    loaded = re.findall(r'<(?!a )[^>]* (?:src|href|srcset)="(?!#)[^"]*"', text)
    assert loaded == [] and "@import" not in text and not re.search(r"url\((?!#)", text)
    assert all(url.startswith("https://") for url in re.findall(r'<a [^>]*href="(?!#)([^"]*)"', text))
    assert "default-src 'none'" in text


def test_the_page_says_when_with_what_and_on_how_many_samples_it_was_measured(results, tmp_path):
    for date, path in zip((1.75e9, 1.7501e9, 1.7502e9), sorted(results.glob("results_*.json")), strict=True):
        report = json.loads(path.read_text())
        report |= {"date": date, "git_hash": "abc1234", "lm_eval_version": "0.4.13", "transformers_version": "5.23.0"}
        report |= {
            "pretty_env_info": "PyTorch version: 2.13.0+cpu\nmore",
            "versions": dict.fromkeys(report["configs"], 2.0),
        }
        own = {"version": "0.1.0", "dtype": "torch.float32", "device": "cpu", "commit": "ab" * 20, "dirty": True}
        report["config"]["mesa_lm"] |= own
        path.write_text(json.dumps(report))
    text = page(results, tmp_path).read_text()
    found = (re.findall(r"<td>(.*?)</td>", row) for row in re.findall("<tr .*</tr>", text))
    rows = {row[1]: row[2:] for row in found if row}
    assert rows["mesa"] == [
        *("2025-06-15", "9", "2.0", "", "float32 on cpu"),
        *("0.1.0", "abababababab edited", "0.4.13", "5.23.0", "2.13.0+cpu"),
    ]
    run(results, "--csv", tmp_path / "rows.csv")
    last = list(csv.DictReader((tmp_path / "rows.csv").open()))[-1]
    assert (last["measured"], last["mesa_lm"], last["torch"], last["kind"]) == (
        *("2025-06-16", "0.1.0", "2.13.0+cpu"),
        "baseline",
    )
    parts = re.findall(r"<span>([^<]*)</span>", text)
    assert parts[:6] == [
        "measured 2025-06-15 to 2025-06-17",
        "mesa-lm 0.1.0",
        "commit abababababab edited",
        "lm-eval 0.4.13",
        "transformers 5.23.0",
        "torch 2.13.0+cpu",
    ]
    assert parts[6:10] == ["9 samples per length", "training length T = 512", "task version 2.0", "float32 on cpu"]


COLUMNS = ["#", "method", "effective length", "mean acc", "512", "1k"]


def titles(text):
    return re.findall(r"<th [^>]*><button[^>]*>([^<]*)<", text)


def test_columns_with_nothing_to_say_disappear(results, tmp_path):
    assert titles(page(results, tmp_path).read_text()) == [*COLUMNS, "within T", "p to best"]
    for path in results.glob("samples_*"):
        path.unlink()
    assert titles(page(results, tmp_path).read_text()) == [*COLUMNS, "within T"]
    assert "p to best" not in run(results).output


def test_a_column_has_one_unit(results, tmp_path):
    for seconds, path in zip((0.8515, 1.67, 12.0), sorted(results.glob("results_*.json")), strict=True):
        costs = {"sample_s": seconds, "peak_bytes": seconds * 2**25}
        report = json.loads(path.read_text())
        path.write_text(json.dumps(report | {"sweep": {"costs": dict.fromkeys(report["configs"], costs)}}))
    text = page(results, tmp_path).read_text()
    assert titles(text)[8:] == ["peak memory at 1k (MiB)", "per sample at 1k (s)"]
    assert re.findall(r"<span class=\"\">([0-9.]+)</span></td>\n</tr>", text) == ["1.670", "12.000", "0.852"]
    assert "| 27.2 | 0.852 |" in run(results).output


def test_regressions(results, tmp_path):
    before = tmp_path / "before"
    shutil.copytree(results, before)
    run(results, "--baseline", before, "--fail-on-regression")
    next(results.glob("results_keys_rerope.json")).unlink()
    gone = run(results, "--baseline", before, "--fail-on-regression", code=1)
    assert "gone: rerope on keys, org/base" in gone.stderr
    assert "| gone | rerope |" in run(results, "--baseline", before).output


def test_what_ran_out_of_memory_is_shown_as_such_in_every_format(results, tmp_path):
    path = results / "results_keys_origin.json"
    report = json.loads(path.read_text())
    path.write_text(json.dumps(report | {"sweep": {"out_of_memory": ["keys_16k", "keys_1024", "other_32k"]}}))
    paths = [tmp_path / f"board.{suffix}" for suffix in ("html", "md", "csv", "json")]
    run(results, "--baseline", results, *(part for path in paths for part in (f"--{path.suffix[1:]}", path)))
    assert "OOM at 16k" in paths[0].read_text()
    assert "| 1.00 | 0.11 | OOM |" in paths[1].read_text()
    last = list(csv.DictReader(paths[2].open()))[-1]
    assert (last["method"], last["length"], last["value"], last["status"]) == ("origin", "16384", "", "oom")
    assert json.loads(paths[3].read_text())[2]["out_of_memory"] == [16384]


def test_wrong_usage_is_refused(results, tmp_path):
    for arguments, message in (
        ([results, "--fail-on-regression"], "--fail-on-regression needs results to compare with; give --baseline"),
        ([results, "--html", tmp_path / "x.txt"], "--html needs a file that ends in .html"),
        ([tmp_path / "nowhere"], "no such file or folder"),
    ):
        with pytest.raises(UsageError, match=message):
            run(*arguments)
    costs = tmp_path / "costs"
    save_results(costs, "mesa", {512: {"x": 2.0}}, metric="prefill_s")
    with pytest.raises(UsageError, match="nothing to rank in these results: found only costs"):
        run(costs)


def test_every_entry_names_the_commit_that_measured_it(results, tmp_path):
    """That of mesa-lm, not of the folder that lm-eval was run in; of models of others there is no other."""
    said = [{"commit": "ab" * 20, "dirty": False}, {"commit": "cd" * 20, "dirty": True}, {"commit": None}]
    paths = sorted(results.glob("results_*.json"))
    for path, own in zip(paths, said, strict=True):
        report = json.loads(path.read_text()) | {"git_hash": "abc1234"}
        report["config"]["mesa_lm"] |= own
        path.write_text(json.dumps(report))
    expected = ["", "abababababab", "cdcdcdcdcdcd edited"]
    run(results, "--csv", tmp_path / "a.csv", "--html", tmp_path / "a.html")
    table = pd.read_csv(tmp_path / "a.csv", dtype=str).fillna("")
    assert sorted(set(table.commit)) == expected
    assert table.groupby("method").commit.nunique().max() == 1
    printed = run(results).stdout
    assert "| commit |" in printed and "| cdcdcdcdcdcd edited |" in printed and "abc1234" not in printed
    page = (tmp_path / "a.html").read_text()
    assert "cdcdcdcdcdcd edited" in page and "abc1234" not in page


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_tables_of_its_width(tmp_path, monkeypatch, capsys, width):
    for method in ("origin", "mesa"):
        save_results(tmp_path, method, {512 * 2**step: {"a": 1.0, "b": 0.5} for step in range(8)})
    monkeypatch.setenv("COLUMNS", str(width))
    _print_boards(list(boards(changes(rank(read([tmp_path])), []))))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    heads = [line.split() for line in shown.splitlines() if line.split()[:2] == ["#", "method"]]
    assert len(heads) == (2 if width == 80 else 1)
    assert {"512", "64k"} <= {title for head in heads for title in head} and "…" not in shown
