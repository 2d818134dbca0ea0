"""The example of docs/adding_a_method.md, as it stands there, is a working method."""

import re
import sys
from pathlib import Path
from types import ModuleType

import oracles
import pytest
import torch
from helpers import decode, random_ids
from tiny_models import tiny_model

import mesa_lm

PAGE = (Path(__file__).parents[2] / "docs" / "adding_a_method.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def sliding_window(monkeypatch):
    module = ModuleType("sliding_window")
    monkeypatch.setitem(sys.modules, "sliding_window", module)  # dataclasses look their module up
    exec(next(block for block in BLOCKS if "class SlidingWindow" in block), module.__dict__)
    return module.SlidingWindow


def test_the_page_adds_a_method_in_about_30_lines(sliding_window):
    block = next(block for block in BLOCKS if "class SlidingWindow" in block)
    code = [line for line in block.splitlines() if line and not line.strip().startswith(('"""', "Source:"))]
    assert len(code) <= 35


def test_the_method_of_the_page_equals_its_oracle(sliding_window):
    scope = dict(vars(oracles))
    exec(next(block for block in BLOCKS if "def sliding_window_pairs" in block), scope)
    model, ids = tiny_model(), random_ids(97)
    with torch.no_grad(), mesa_lm.extrapolate(model, sliding_window(window=13)):
        logits = decode(model, ids, 89)
    expected = oracles.dense_logits(model, ids, scope["sliding_window_pairs"](89, 97, w=13))
    torch.testing.assert_close(logits.double(), expected, atol=3e-4, rtol=0)
