"""The leaderboard's page in a real browser, as wide as a desktop and as a phone: sorted, filtered, linked, printed."""

import csv
import io
import json
import re

import command_line
import pytest
from browser import CHROMIUM, Browser
from made_results import save_results

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
EVIL = "</script><img src=x onerror=\"document.title='broken'\">'\"=1+1"
SHOWN = """[...document.querySelectorAll('section:not([hidden]) table:not(.from) tbody tr:not(.kind)')]
    .filter(row => !row.hidden).map(row => row.cells[1].querySelector('a')?.textContent ?? row.cells[1].textContent)
    .map(text => text.trim()).join()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = Browser(tmp_path_factory.mktemp("browser"))
    yield started
    started.close()


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    for method, right in {"mesa": (9, 9), "origin": (9, 1), "rerope": (9, 6)}.items():
        scores = {
            length: {f"doc{i}": float(i < n) for i in range(9)} for length, n in zip((512, 1024), right, strict=True)
        }
        save_results(folder, method, scores, answer=EVIL)
    return folder


def page(results, tmp_path):
    path = tmp_path / "board.html"
    result = command_line.run("leaderboard", results, "--html", path)
    assert result.exit_code == 0, result.output
    return path


def click(title, times=1):
    find = f"[...document.querySelectorAll('th button')].find(button => button.textContent === {title!r})"
    return f"for (let i = 0; i < {times}; i++) {find}.click();"


def filtered(text):
    return f"""{{ const filter = document.getElementById('filter'); filter.value = {text!r};
        filter.dispatchEvent(new Event('input')); }}"""


UNGROUPED = "document.getElementById('kinds').click();"


@pytest.mark.parametrize(
    ("action", "shown"),
    [
        ("", "origin,rerope,mesa"),
        (UNGROUPED, "mesa,rerope,origin"),
        (UNGROUPED + click("method"), "mesa,origin,rerope"),
        (UNGROUPED + click("mean acc", 2), "mesa,rerope,origin"),
        (UNGROUPED + click("mean acc"), "origin,rerope,mesa"),
        (UNGROUPED + click("1k", 2), "mesa,rerope,origin"),
        (UNGROUPED + click("p to best"), "origin,rerope,mesa"),
        (UNGROUPED + click("p to best", 2), "rerope,origin,mesa"),
        (click("mean acc", 2), "origin,rerope,mesa"),
        (filtered("keys RER"), "rerope"),
        (filtered("chunked"), "mesa"),
        (filtered("nobody"), ""),
    ],
    ids=[
        *("by kind", "as ranked", "by name", "by mean, down", "by mean, up", "by a length, down"),
        *("no value last, up", "no value last, down", "within kinds", "filtered", "filtered by kind", "nothing left"),
    ],
)
def test_the_page_sorts_and_filters_and_its_address_brings_the_view_back(browser, results, tmp_path, action, shown):
    path = page(results, tmp_path)
    browser.open(path)
    browser.run(action)
    assert browser.run(SHOWN) == shown
    address = browser.run("document.getElementById('link').href")
    browser.open(path, "#" + address.partition("#")[2])
    assert browser.run(SHOWN) == shown
    assert [url.partition("#")[0] for url in browser.requests] == [path.as_uri()] and browser.problems == []


def test_model_and_task_are_chosen_and_unknown_ones_are_no_view(browser, results, tmp_path):
    save_results(results, "mesa", {512: {"a": 1.0}}, task="lines", model="org/other")
    path = page(results, tmp_path)
    boards = "[...document.querySelectorAll('section:not([hidden]) h2')].map(head => head.textContent)"
    for fragment, shown in (
        ("#model=org%2Fother", ["lines · org/other"]),
        ("#task=keys", ["keys · org/base"]),
        ("#task=keys&model=org%2Fother", []),
        ("#task=nothing&sort=nothing&order=x", ["keys · org/base", "lines · org/other"]),
    ):
        browser.open(path, fragment)
        assert browser.run(boards) == shown
    assert browser.problems == []


def test_the_page_gives_its_results_as_csv_and_json(browser, results, tmp_path):
    path = page(results, tmp_path)
    browser.open(path)
    for name in ("csv", "json"):
        browser.run(f"document.querySelector('[data-file=\"leaderboard.{name}\"]').click()")
        command_line.run("leaderboard", results, f"--{name}", tmp_path / f"x.{name}")
        assert browser.downloaded(f"leaderboard.{name}") == (tmp_path / f"x.{name}").read_text()
    rows = list(csv.DictReader(io.StringIO(browser.downloaded("leaderboard.csv"))))
    assert {row["method"] for row in rows} == {
        entry["method"] for entry in json.loads((tmp_path / "x.json").read_text())
    }


def test_nothing_that_results_say_is_run_or_loaded(browser, tmp_path):
    for task in ("keys", "a<b>'&\"_long"):
        for method in (EVIL, "origin", "javascript:alert(1)"):
            name = re.sub(r"\W", "", method)
            file = save_results(tmp_path / "evil", name, {512: {"a": 0.0}}, task=task, model=EVIL, answer=EVIL)
            report = json.loads(file.read_text())
            report["config"]["mesa_lm"] |= {"method": method, "version": EVIL, "commit": EVIL, "dtype": EVIL}
            report["lm_eval_version"] = report["transformers_version"] = report["config"]["model_sha"] = EVIL
            report["versions"] = dict.fromkeys(report["configs"], EVIL)
            file.write_text(json.dumps(report))
    path = page(tmp_path / "evil", tmp_path)
    browser.open(path, "#filter=" + EVIL)
    assert browser.run("document.title") == "Leaderboard"
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert not [url for url in browser.requests if not url.startswith(path.as_uri())] and browser.problems == []
    addresses = browser.run("[...document.querySelectorAll('a')].map(link => link.href)")
    assert all(url.startswith(("file:", "https://")) for url in addresses)


FAULTS = """(() => {
const faults = [], wide = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth > wide) faults.push("the page scrolls sideways");
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
const light = colour => {
  const most = colour.startsWith("rgb") ? 255 : 1;
  const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(part => part / most);
  const [red, green, blue] = parts.map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
for (const cell of document.querySelectorAll("td.heat")) {
  const style = getComputedStyle(cell), shades = [light(style.color), light(style.backgroundColor)];
  const [low, high] = shades.sort((a, b) => a - b);
  if ((high + 0.05) / (low + 0.05) < 4.5) faults.push("not legible: " + style.color + " on " + style.backgroundColor);
}
return faults;
})()"""
LONG_NAMES = ["origin", *(f"method{i} (extrapolated_width=100, weave=self_extend)" for i in range(20))]


def many_results(folder, methods, lengths):
    for index, method in enumerate(LONG_NAMES[:methods]):
        scores = {512 * 2**step: {f"doc{i}": float(i > index) for i in range(9)} for step in range(lengths)}
        path = save_results(folder, f"method{index}", scores)
        report = json.loads(path.read_text())
        report["sweep"] = {"costs": {name: {"sample_s": 0.5 + index} for name in report["configs"]}}
        report["config"]["mesa_lm"]["method"] = method
        path.write_text(json.dumps(report))
    return folder


@pytest.mark.parametrize(("methods", "lengths"), [(1, 1), (2, 2), (5, 8), (21, 8)])
def test_nothing_is_wider_than_the_window_without_a_hint_and_text_is_legible(browser, tmp_path, methods, lengths):
    path = page(many_results(tmp_path / "many", methods, lengths), tmp_path)
    assert path.stat().st_size < 300_000
    for width in (390, 1280, 1700):
        for scheme in ("light", "dark"):
            browser.media(prefers_color_scheme=scheme)
            browser.open(path, width=width)
            assert browser.run(FAULTS) == [], (width, scheme)
    browser.media()


def test_a_phone_shows_the_mean_without_scrolling(browser, results, tmp_path):
    browser.open(page(results, tmp_path), width=390)
    right = "head => [head.textContent.trim(), head.getBoundingClientRect().right]"
    places = dict(browser.run(f"[...document.querySelectorAll('thead th')].map({right})"))
    assert places["mean acc"] <= 390 - 16


def test_charts_follow_dark_mode(browser, results, tmp_path):
    path = page(results, tmp_path)
    colours = "[...document.querySelectorAll('figure svg path')].map(path => getComputedStyle(path).fill)"
    browser.media(prefers_color_scheme="dark")
    browser.open(path)
    found = browser.run(colours)
    browser.media()
    assert "rgb(22, 24, 29)" in found and "rgb(255, 255, 255)" not in found


def test_a_name_leads_to_its_definition_and_to_its_paper(browser, results, tmp_path):
    browser.open(page(results, tmp_path))
    browser.run("[...document.querySelectorAll('.method a')].find(link => link.textContent === 'rerope').click()")
    definition = browser.run("document.querySelector(':target').nextElementSibling.checkVisibility()")
    assert definition and browser.run("document.querySelector(':target').textContent") == "rerope"
    assert "https://kexue.fm/archives/9708" in browser.run("[...document.querySelectorAll('a.paper')].map(a => a.href)")


def test_print_shows_every_column_and_no_controls(browser, tmp_path):
    path = page(many_results(tmp_path / "many", 5, 8), tmp_path)
    assert browser.open(path) is None and browser.printed().startswith(b"%PDF")
    browser.media("print")
    browser.open(path, width=1046)  # of A4, sideways, without its margins
    wide = "[...document.querySelectorAll('table:not(.from)')].map(table => table.getBoundingClientRect().right)"
    assert max(browser.run(wide)) <= 1046
    assert browser.run("getComputedStyle(document.querySelector('.controls')).display") == "none"
    browser.media()
