"""What requests share is measured, and changes no answer."""

import json

import pytest

from mesa_lm.pipelines.development.chunk_sharing import compare_sharing


@pytest.mark.parametrize("method", ["mesa", "rerope"])
def test_both_ways_are_timed(method, capsys):
    compare_sharing(tokens=1500, questions=2, choices=2, method=method)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["largest_difference"] < 1e-3 and found["with_s"] > 0 and found["without_s"] > 0
    assert ("chunk_width" in found) == (method == "mesa")
