"""Where numbers come from."""

from pathlib import Path

import pytest
from made_results import measurement, report

from mesa_lm.reporting.lm_eval_files import ResultsFile
from mesa_lm.reporting.provenance import PARTS, listed, row_provenance, run_provenance


def file(path, **changes):
    own = {"version": "0.1.0", "commit": "0123456789abcdef", "dirty": False}
    own |= {"dtype": "torch.bfloat16", "device": "cuda:0"}
    content = report({512: 1.0}, mesa_lm=own | changes, model_sha="fedcba9876543210", date=1.75e9)
    return ResultsFile(Path(path), content | {"versions": {"keys_512": 2.0}, "torch_version": "2.13.0"})


def test_a_run_says_what_it_was_made_with():
    assert run_provenance(file("a")) == {
        "measured": "2025-06-15",
        "model revision": "fedcba987654",
        "mesa-lm": "0.1.0",
        "commit": "0123456789ab",
        "torch": "2.13.0",
        "run as": "bfloat16 on cuda:0",
    }


@pytest.mark.parametrize(("dirty", "shown"), [(True, "0123456789ab edited"), (None, "0123456789ab")])
def test_sources_that_were_changed_since_their_commit_are_told(dirty, shown):
    assert run_provenance(file("a", dirty=dirty))["commit"] == shown


def test_a_row_of_several_runs_lists_each_value_once():
    files = {Path("a"): file("a"), Path("b"): file("b", commit="1" * 40)}
    points = [
        measurement(length=512, name="keys_512", source=Path("a")),
        measurement(length=1024, name="keys_1k", source=Path("b"), samples=30),
    ]
    found = row_provenance(points, files)
    assert found["commit"] == "0123456789ab, 111111111111"
    assert (found["samples per length"], found["task version"]) == ("20 to 30", "2.0")
    assert found.keys() <= set(PARTS)


def test_dates_are_a_range():
    assert listed([{"measured": "2025-06-15"}, {"measured": "2025-05-01"}]) == {"measured": "2025-05-01 to 2025-06-15"}
