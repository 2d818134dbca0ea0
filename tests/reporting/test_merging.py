"""Results of several people side by side."""

import json
import logging

import command_line
import pytest
from made_results import ranked, save

from mesa_lm.errors import UsageError
from mesa_lm.reporting.merging import read_merged
from mesa_lm.reporting.ranking import rank


@pytest.fixture
def sources(tmp_path):
    ranked(tmp_path / "ours", {"origin": {512: 20, 1024: 5}, "mesa": {512: 20, 1024: 19}})
    ranked(tmp_path / "theirs", {"origin": {512: 10, 1024: 5}, "yarn": {512: 18, 1024: 19}, "mesa": {512: 10, 1024: 9}})
    return [tmp_path / "ours", tmp_path / "theirs"]


def test_what_two_sources_have_stays_two_rows(sources):
    entries = {entry.method: entry for entry in rank(read_merged(sources))}
    assert entries.keys() == {"origin @ ours", "origin @ theirs", "mesa @ ours", "mesa @ theirs", "yarn"}
    values = [[point.value for point in entries[f"mesa @ {name}"].points] for name in ("ours", "theirs")]
    assert values == [[1, 0.95], [0.5, 0.45]]
    assert {entry.kind for label, entry in entries.items() if label.startswith("mesa")} == {"chunked"}


def test_a_row_is_held_against_the_origin_of_its_own_source(sources):
    entries = {entry.method: entry for entry in rank(read_merged(sources))}
    assert entries["mesa @ ours"].price.difference == 0
    assert entries["mesa @ theirs"].price.difference == 0


def test_versions_of_a_task_that_differ_are_told(sources, caplog):
    for number, source in enumerate(sources):
        for path in source.glob("results_*.json"):
            report = json.loads(path.read_text())
            save(path, report | {"versions": dict.fromkeys(report["configs"], number + 1.0)})
    with caplog.at_level(logging.WARNING):
        read_merged(sources)
    assert "keys has several versions, whose numbers do not compare: 1.0 in ours; 2.0 in theirs" in caplog.text


def test_sources_must_be_several_and_have_names(sources, tmp_path):
    with pytest.raises(UsageError, match="--merge needs several results"):
        read_merged(sources[:1])
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="which must differ, found ours, ours"):
        read_merged([sources[0], sources[0]])


def test_the_command_writes_a_folder_that_can_be_served(sources, tmp_path):
    folder = tmp_path / "space"
    result = command_line.run("leaderboard", *sources, "--merge", "--space", folder)
    assert result.exit_code == 0 and result.output.strip() == str(folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {"index.html", "leaderboard.csv", "leaderboard.json", "README.md", ".nojekyll"}
    assert (folder / "README.md").read_text().startswith("---\ntitle: ") and "mesa @ theirs" in (
        folder / "leaderboard.csv"
    ).read_text()
    assert command_line.run("leaderboard", *sources, "--space", folder).exit_code == 0  # again, over what is there
