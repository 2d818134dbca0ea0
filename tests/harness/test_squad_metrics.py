"""SQuAD's metrics under the name that lm-eval's tasks import."""

import subprocess
import sys

import pytest

from mesa_lm.harness import plugin
from mesa_lm.harness import squad_metrics as squad


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat, a dog & an ox.", "cat dog ox"),
        ("Theatre", "theatre"),
        ("another-one", "anotherone"),
        ("", ""),
        ("the", ""),
        ("Straße 5%", "straße 5"),
    ],
)
def test_normalize_answer(text, normal):
    assert squad.normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("gold", "answer", "exact", "f1"),
    [
        ("the red house", "Red house!", 1, 1.0),
        ("red house", "a big red house", 0, 0.8),  # precision 2/3, recall 1
        ("red red house", "red", 0, 0.5),
        ("red", "blue", 0, 0.0),
        ("", "the", 1, 1.0),
        ("", "blue", 0, 0.0),
    ],
)
def test_scores(gold, answer, exact, f1):
    assert squad.compute_exact(gold, answer) == exact
    assert squad.compute_f1(gold, answer) == pytest.approx(f1)


@pytest.mark.parametrize(
    "how",
    [
        "from transformers.data.metrics import squad_metrics",
        "import transformers.data.metrics.squad_metrics as squad_metrics",
    ],
)
def test_lm_evals_tasks_find_it_where_transformers_had_it(how):
    found = subprocess.run(
        [sys.executable, "-c", f"import lm_eval.tasks\n{how}\nprint(squad_metrics.normalize_answer('The A 1'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["1"]


def test_a_module_that_is_there_comes_first():
    finders = [type(finder).__name__ for finder in sys.meta_path]
    own = finders.index(plugin._SquadFinder.__name__)
    assert all(name not in finders[own:] for name in ("PathFinder", "_Finder"))
    assert plugin._SquadFinder().find_spec("transformers.data.other") is None
