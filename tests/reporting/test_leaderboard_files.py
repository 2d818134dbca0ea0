"""The leaderboard's files: complete, safe, and working in a browser."""

import csv
import html
import json
import re
import shutil
import subprocess

import command_line
import pandas as pd
import pytest
from made_results import save_results

from mesa_lm.errors import UsageError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--window-size=1400,1000"),
]
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
    assert "| 3 | origin | 512 | 0.556 (0.392 to 0.719) | 0.016 | 1.000 | 0.111 |" in paths["md"].read_text()
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
    """Run the body of a function at the end of the page, in a browser, and return what it returns."""
    changed = path.with_name("driven.html")
    content, function = (json.dumps(text).replace("</", "<\\/") for text in (path.read_text(), script))
    # Headless Chromium has no window below 500 px; a frame of any width is as good.
    changed.write_text(
        f"""<!doctype html><title></title><iframe style="width: {width}px; height: 900px; border: 0"></iframe><script>
        const frame = document.querySelector("iframe");
        frame.srcdoc = {content};
        frame.onload = () => {{
          const driver = frame.contentDocument.createElement("script");
          driver.textContent = "document.title = JSON.stringify((() => {{" + {function} + "}})())";
          frame.contentDocument.body.append(driver);
          document.title = frame.contentDocument.title;
        }};
        </script>"""
    )
    folder = f"--user-data-dir={path.parent / 'browser'}"
    command = [CHROMIUM, *FLAGS, folder, "--dump-dom", changed.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", shown.stdout, flags=re.DOTALL)[1]))


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
    script = f"const filter = document.getElementById('filter'); {action} return {METHODS};"
    assert dump(page(results, tmp_path), script) == shown


FAULTS = """
const faults = [], wide = document.documentElement.clientWidth;
const right = element => element.getBoundingClientRect().right;
for (const element of document.querySelectorAll("body *"))
  if (!element.parentElement.closest(".scroll, svg") && right(element) > wide + 1)
    faults.push("wider than the page: " + element.outerHTML.slice(0, 80));
for (const box of document.querySelectorAll(".scroll")) {
  const isWide = box.scrollWidth > box.clientWidth + 1, hint = box.previousElementSibling;
  if (isWide && getComputedStyle(box).overflowX !== "auto") faults.push("cannot be scrolled: " + box.className);
  if (isWide !== hint.offsetHeight > 0) faults.push("hint " + hint.offsetHeight + " of " + box.className);
}
for (const svg of document.querySelectorAll("figure svg")) {
  const frame = svg.getBoundingClientRect(), scale = frame.width / svg.viewBox.baseVal.width;
  for (const text of svg.querySelectorAll("text")) {
    const size = parseFloat(getComputedStyle(text).fontSize) * scale, box = text.getBoundingClientRect();
    if (size < 10) faults.push("text of " + size + " px: " + text.textContent);
    if (box.left < frame.left - 1 || box.right > frame.right + 1) faults.push("cut off: " + text.textContent);
  }
}
return faults;
"""
LONG_NAMES = ["origin", *(f"method{i} (extrapolated_width=100, weave=self_extend)" for i in range(13))]


def many_results(folder, methods, lengths):
    for index, method in enumerate(LONG_NAMES[:methods]):
        scores = {512 * 2**step: {f"doc{i}": float(i > index) for i in range(9)} for step in range(lengths)}
        path = save_results(folder, f"method{index}", scores)
        report = json.loads(path.read_text())
        report["sweep"] = {"costs": {name: {"sample_s": 0.5 + index} for name in report["configs"]}}
        report["config"]["mesa_lm"]["method"] = method
        path.write_text(json.dumps(report))
    return folder


@needs_browser
@pytest.mark.parametrize(("methods", "lengths"), [(1, 1), (2, 2), (5, 8), (14, 2), (14, 8)])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window_without_a_hint_and_text_is_legible(tmp_path, methods, lengths, width):
    path = page(many_results(tmp_path / "many", methods, lengths), tmp_path)
    assert dump(path, FAULTS, width) == []


@needs_browser
def test_a_phone_shows_the_mean_without_scrolling(results, tmp_path):
    right = "head => [head.textContent, head.getBoundingClientRect().right]"
    script = f"return [...document.querySelectorAll('th')].map({right})"
    places = dict(dump(page(results, tmp_path), script, width=390))
    assert places["mean acc"] <= 390 - 16


@needs_browser
def test_charts_follow_dark_mode(results, tmp_path):
    # What a reader who prefers dark has set, set by hand.
    dark = "document.documentElement.style.setProperty('--paper', 'rgb(1, 2, 3)');"
    colours = "[...document.querySelectorAll('figure svg path')].map(path => getComputedStyle(path).fill)"
    found = dump(page(results, tmp_path), f"{dark} return {colours}")
    assert found[0] == "rgb(1, 2, 3)"
    assert "rgb(255, 255, 255)" not in found


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
    parts = re.findall(r"<span>([^<]*)</span>", page(results, tmp_path).read_text())
    assert parts[:6] == [
        "measured 2025-06-15 to 2025-06-17",
        "mesa-lm 0.1.0",
        "commit abababababab edited",
        "lm-eval 0.4.13",
        "transformers 5.23.0",
        "torch 2.13.0+cpu",
    ]
    assert parts[6:10] == ["9 samples per length", "training length T = 512", "task version 2.0", "float32 on cpu"]


def titles(text):
    return re.findall(r"<th [^>]*><button[^>]*>([^<]*)<", text)


def test_columns_with_nothing_to_say_disappear(results, tmp_path):
    assert titles(page(results, tmp_path).read_text()) == ["#", "method", "effective length", "mean acc", "p to best"]
    for path in results.glob("samples_*"):
        path.unlink()
    assert titles(page(results, tmp_path).read_text()) == ["#", "method", "effective length", "mean acc"]
    assert "p to best" not in run(results).output


def test_a_column_has_one_unit(results, tmp_path):
    for seconds, path in zip((0.8515, 1.67, 12.0), sorted(results.glob("results_*.json")), strict=True):
        costs = {"sample_s": seconds, "peak_bytes": seconds * 2**25}
        report = json.loads(path.read_text())
        path.write_text(json.dumps(report | {"sweep": {"costs": dict.fromkeys(report["configs"], costs)}}))
    text = page(results, tmp_path).read_text()
    assert titles(text)[5:] == ["peak memory at 1k (MiB)", "per sample at 1k (s)"]
    assert re.findall(r"<span class=\"\">([0-9.]+)</span></td>\n</tr>", text) == ["0.852", "12.000", "1.670"]
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
    assert "| 1.000 | 0.111 | OOM |" in paths[1].read_text()
    last = list(csv.DictReader(paths[2].open()))[-1]
    assert (last["method"], last["length"], last["value"], last["status"]) == ("origin", "16384", "", "oom")
    assert json.loads(paths[3].read_text())[2]["out_of_memory"] == [16384]


@needs_browser
@pytest.mark.parametrize("clicks", [1, 2])
def test_rows_without_a_value_are_sorted_last(results, tmp_path, clicks):
    script = f"""for (let i = 0; i < {clicks}; i++) document.querySelectorAll('th button')[4].click();
        return {METHODS}"""
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
