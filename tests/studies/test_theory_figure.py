"""The figure of the theorems: nothing cut off or covered, whatever its parameters."""

import pytest
from drawn_texts import faults

from mesa_lm.studies.theory.output_figure import output_figure
from mesa_lm.studies.theory.outputs import Parameters, curves


@pytest.mark.parametrize(
    ("max_length", "near", "threshold", "length"),
    [(64, 16, 0.5, 4096), (5, 3, -1.0, 301), (600, 150, 12.5, 700), (8, 2, 0.5, 9)],
)
def test_no_text_is_cut_off_or_covers_another(max_length: int, near: int, threshold: float, length: int) -> None:
    parameters = Parameters(max_length=max_length, near=near, width=8, threshold=threshold, length=length)
    found = curves(parameters)

    assert faults(output_figure(parameters, found)) == []
