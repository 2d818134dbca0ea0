"""The leaderboard's files: complete, safe, and working in a browser."""

import csv
import html
import json
import re
import shutil
import subprocess

import command_line
import pytest
from made_results import save_results

from mesa_lm.errors import UsageError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
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
    assert "| 3 | origin | 512 | 0.556 (0.392 to 0.719) | 0.016 | 1.000 | 0.111 |  |" in paths["md"].read_text()
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
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', text)
    assert "default-src 'none'" in text


def dump(path, script, width=1280):
    """Run a script at the end of the page in a browser and return what it leaves in the title."""
    changed = path.with_name("driven.html")
    changed.write_text(path.read_text().replace("</body>", f"<script>{script}</script></body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom"]
    shown = subprocess.run([*command, changed.as_uri()], capture_output=True, text=True, check=True, timeout=60)
    return html.unescape(re.search(r"<title>(.*?)</title>", shown.stdout, flags=re.DOTALL)[1])


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
METHODS = "[...document.querySelectorAll('tbody tr')].filter(r => !r.hidden).map(r => r.cells[1].textContent).join()"


@needs_browser
@pytest.mark.parametrize(
    ("action", "shown"),
    [
        ("", "mesa,rerope,origin"),
        ("document.querySelectorAll('th button')[1].click();", "mesa,origin,rerope"),
        ("for (const i of [1, 2]) document.querySelectorAll('th button')[3].click();", "mesa,rerope,origin"),
        ("document.querySelectorAll('th button')[3].click();", "origin,rerope,mesa"),
        ("filter.value = 'keys RER'; filter.dispatchEvent(new Event('input'));", "rerope"),
        ("filter.value = 'nobody'; filter.dispatchEvent(new Event('input'));", ""),
    ],
    ids=["as ranked", "by name", "by mean, down", "by mean, up", "filtered", "nothing left"],
)
def test_the_page_sorts_and_filters(results, tmp_path, action, shown):
    script = f"const filter = document.getElementById('filter'); {action} document.title = {METHODS};"
    assert dump(page(results, tmp_path), "{" + script + "}") == shown


@needs_browser
def test_the_page_fits_a_phone(results, tmp_path):
    # Headless Chromium has no window below 500 px; a body of a phone's width in it is as good.
    right = "getBoundingClientRect().right"
    script = f"""document.body.style.width = '328px';
        document.title = [...document.querySelectorAll('body *')]
            .filter(e => !e.parentElement.closest('.scroll, svg') && e.{right} > document.body.{right})
            .map(e => e.outerHTML.slice(0, 80)).join();"""
    assert dump(page(results, tmp_path), script, width=500) == ""


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
    assert "| 1.000 | 0.111 | OOM |" in paths[1].read_text()
    last = list(csv.DictReader(paths[2].open()))[-1]
    assert (last["method"], last["length"], last["value"], last["status"]) == ("origin", "16384", "", "oom")
    assert json.loads(paths[3].read_text())[2]["out_of_memory"] == [16384]


@needs_browser
@pytest.mark.parametrize("clicks", [1, 2])
def test_rows_without_a_value_are_sorted_last(results, tmp_path, clicks):
    script = f"""for (let i = 0; i < {clicks}; i++) document.querySelectorAll('th button')[4].click();
        document.title = {METHODS}"""
    shown = dump(page(results, tmp_path), script).split(",")
    assert shown[2] == "mesa" and len(shown) == 3


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
