"""Peak memory of scoring is measured in processes of their own; too much of it is a result."""

import re

import pytest

from mesa_lm.pipelines.development import scoring_memory


@pytest.mark.slow
def test_cells_are_measured_and_too_little_memory_is_a_result(monkeypatch, capsys):
    monkeypatch.setattr(scoring_memory, "KINDS", ("loglikelihood",))
    scoring_memory.compare_scoring(limit_gib=4, length=[6000], vocabulary=100_003)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| loglikelihood ")]
    assert re.fullmatch(r"\| loglikelihood \| 6,000 \| out of memory \(more than 4\) \| [01]\.\d \|", row)


def test_other_errors_are_no_result(tmp_path):
    scoring_memory.save_narrow_model(tmp_path, 997)
    with pytest.raises(AttributeError):
        scoring_memory.measured_cell("mesa-hf", "no_such_request", 400, str(tmp_path), 12)
