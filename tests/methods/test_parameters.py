"""Any value whatever: refused in one line, or a method that computes finite numbers; and the model stays whole."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_model

import mesa_lm
from mesa_lm.errors import MesaError, MethodError
from mesa_lm.methods.parameters import MOST, declared
from mesa_lm.methods.registry import METHODS

IDS = torch.arange(100)[None] % 57 + 1
MODEL = tiny_model()
PLAUSIBLE = st.integers(1, 40) | st.floats(1, 40) | st.sampled_from((MOST, float(MOST), 0.001, True, "auto", "stale"))
NUMBERS = st.one_of(
    st.integers(-2, 60),
    st.floats(-1, 60),
    st.floats(),  # nan and infinities among them
    st.integers(),
    st.sampled_from(
        (MOST, MOST + 1, -MOST, float(MOST), 10**30, 10**400, 10**5000, 1e300, 5e-324, 0.001, 2**31, 2**63)
    ),
)
VALUES = st.one_of(NUMBERS, st.sampled_from((True, False, None, "", "auto", "7", "nan", (), b"7", 1j)))


@st.composite
def drawn_methods(draw):
    """A method's class, and values for one or two of its parameters."""
    method = draw(st.sampled_from([method for method in METHODS if declared(method)]))
    names = draw(st.lists(st.sampled_from(sorted(declared(method))), min_size=1, max_size=2, unique=True))
    return method, {name: draw(draw(st.sampled_from((PLAUSIBLE, PLAUSIBLE, VALUES)))) for name in names}


@settings(max_examples=400)
@given(drawn_methods())
def test_any_parameters_are_refused_or_give_finite_numbers(drawn):
    method, options = drawn
    before = set(MODEL.__dict__)
    try:
        handle = mesa_lm.extrapolate(MODEL, method(**options))
    except MesaError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
    else:
        with torch.no_grad(), handle:
            try:
                assert MODEL(IDS, logits_to_keep=3).logits.isfinite().all()
            except MesaError as error:
                assert "\n" not in str(error)
    assert set(MODEL.__dict__) == before


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**10, -(10**10), 1e10])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_every_number_is_finite_and_in_range(method, value):
    for one in dataclasses.fields(method):
        with pytest.raises(MethodError, match=f"{one.name} (must be|has no meaning)"):
            method(**{one.name: value})


def test_a_number_that_is_too_large_is_named_with_the_bound():
    with pytest.raises(
        MethodError,
        match="window must be an integer of at least 1, found an integer of 1329 bits, more than 1000000000",
    ):
        mesa_lm.make_method("rerope", window=10**400)
    with pytest.raises(
        MethodError, match=r"factor must be a number of at least 1, found 1e\+300, more than 1000000000"
    ):
        mesa_lm.make_method("ntk", factor=1e300)


def test_yarns_scales_go_together():
    with pytest.raises(MethodError, match="give mscale_all_dim as well, or neither"):
        mesa_lm.make_method("yarn", mscale=0.7)
    with pytest.raises(MethodError, match="attention_factor takes the place of mscale"):
        mesa_lm.make_method("yarn", mscale=0.7, mscale_all_dim=0.7, attention_factor=1.1)
    # transformers reads 0 as "not given"
    with pytest.raises(MethodError, match="beta_slow must be a number of at least 0.001, found 0"):
        mesa_lm.make_method("yarn", beta_slow=0)
