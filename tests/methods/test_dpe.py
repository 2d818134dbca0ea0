"""Group sizes of DPE: given, by name, and wrong; its distances are those of `oracles`."""

import json

import pytest
import torch
from helpers import decode, random_ids
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


def written(path, selection):
    path.write_text(json.dumps(selection))
    return {"window": 7, "scale_factors": "2/5/3", "selected_pairs": str(path)}


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_pairs_that_a_head_does_not_select_keep_their_distances(kv_heads, tmp_path):
    """All pairs is the method without a selection, none the untouched model; decoding equals prefill."""
    model, ids = tiny_model(kv_heads=kv_heads), random_ids(67)
    some = [[[0], [1, 2], [], [0, 2]], [[2], [0, 1, 2], [0], [1]]]
    for selection, alike in (
        ([[[0, 1, 2]] * 4] * 2, {"window": 7, "scale_factors": "2/5/3"}),
        ([[[]] * 4] * 2, {"window": 67}),
        (some, None),
    ):
        options = written(tmp_path / f"{len(str(selection))}.json", selection)
        with torch.no_grad(), mesa_lm.extrapolate(model, "dpe", **options):
            whole, decoded = model(ids[None]).logits[0], decode(model, ids, 30)
        torch.testing.assert_close(decoded, whole, atol=1e-4, rtol=0)
        if alike is not None:
            with torch.no_grad(), mesa_lm.extrapolate(model, "dpe", **alike):
                torch.testing.assert_close(whole, model(ids[None]).logits[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ([[[0]] * 4], "must be of 2 layers with 4 heads, found 1 layers with 4 in "),
        ([[[0]] * 3] * 2, "found 2 layers with 3 in "),
        ([[[3]] * 4] * 2, "names pair 3, but the model rotates 3 pairs"),
        ([[["0"]] * 4] * 2, "lists of integers from 0 on"),
        (7, "must be 'all' or a JSON file, found '.*': 'int' object is not iterable"),
    ],
)
def test_wrong_selections_are_named(selection, message, tmp_path):
    with pytest.raises(MethodError, match=message):
        mesa_lm.extrapolate(tiny_model(), "dpe", **written(tmp_path / "pairs.json", selection))
    with pytest.raises(MethodError, match="must be 'all' or a JSON file, found 'missing.json': "):
        mesa_lm.extrapolate(tiny_model(), "dpe", selected_pairs="missing.json")
