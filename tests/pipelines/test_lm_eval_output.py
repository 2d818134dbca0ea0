"""What lm-eval prints and asks of the machine stays out of a sweep's way."""

import pytest
from lm_eval import evaluator

pytest.importorskip("ray")
from mesa_lm.pipelines import lm_eval_output
from mesa_lm.pipelines.lm_eval_output import machine_asked_once


def test_the_machine_is_asked_once_and_git_says_nothing(tmp_path, monkeypatch, capfd):
    """In a folder that belongs to no repository, of which git complains by itself."""
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(lm_eval_output, "add_env_info", lambda results: asked.append(results.update(a=1)))
    lm_eval_output._environment.cache_clear()
    lm_eval_output._commit.cache_clear()
    stock = evaluator.add_env_info, evaluator.get_git_commit_hash
    for _ in range(2):
        with machine_asked_once():
            found = {}
            evaluator.add_env_info(found)
            assert (found, evaluator.get_git_commit_hash()) == ({"a": 1}, None)
    assert len(asked) == 1 and capfd.readouterr().err == ""
    assert (evaluator.add_env_info, evaluator.get_git_commit_hash) == stock
    lm_eval_output._environment.cache_clear()
    lm_eval_output._commit.cache_clear()
