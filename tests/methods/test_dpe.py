"""Group sizes of DPE: given, by name, and wrong; its distances are those of `oracles`."""

import pytest
from tiny_models import tiny_model

import mesa_lm
from mesa_lm.errors import MethodError
from mesa_lm.methods.registry import make_method


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_factors": "2/x"}, "scale_factors must be integers of at least 1 .* or llama3, .*, found '2/x'"),
        ({"scale_factors": "2/0"}, "at least 1 with / between them"),
        ({"scale_factors": 2}, "scale_factors must be text, found 2"),
        ({"scale_factors": "2/4", "group_bounds": "0/3"}, "must be 3 pairs in ascending order .*, found '0/3'"),
        ({"scale_factors": "2/4", "group_bounds": "0/3/2"}, "in ascending order"),
    ],
)
def test_wrong_groups_are_named(options, message):
    with pytest.raises(MethodError, match=message):
        make_method("dpe", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_factors": "llama3"}, "scale_factors has 8 groups, but the model rotates 3 pairs"),
        ({"scale_factors": "2/4", "group_bounds": "0/2/4"}, "must go from 0 to the model's 3 rotated pairs"),
    ],
)
def test_groups_that_do_not_fit_the_model_are_named(options, message):
    model = tiny_model()
    with pytest.raises(MethodError, match=message):
        mesa_lm.extrapolate(model, "dpe", **options)
    mesa_lm.extrapolate(model, "origin").remove()  # a failed attempt leaves nothing behind
