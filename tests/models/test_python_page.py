"""The examples of docs/python.md run, one after another, with the demo model."""

import re
from pathlib import Path

import pytest

import mesa_lm
from mesa_lm.demo import MODEL_PATH

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text()


@pytest.mark.slow
def test_the_examples_run(capsys):
    blocks = re.findall(r"^```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    scope = {}
    for block in blocks:
        block = block.replace("./my-model", str(MODEL_PATH)).replace('"a long text"', '"The grass is green. " * 150')
        exec(block, scope)
    model = scope["model"]
    assert scope["output"].shape[1] > scope["inputs"]["input_ids"].shape[1] > 512
    assert scope["past"].get_seq_length() == scope["inputs"]["input_ids"].shape[1] + 49
    assert "forward" not in model.__dict__
    assert not scope["thread"].is_alive()
    scores = {name: found["results"]["passkey_long_1k"]["acc,none"] for name, found in scope["results"].items()}
    assert scores["origin"] < scores["mesa"] == scores["rerope"] == 1
    assert isinstance(scope["lm"].method, type(mesa_lm.make_method("rerope")))
