"""A sweep is cut by tokens, every sample once."""

import pytest

from mesa_lm.errors import UsageError

pytest.importorskip("ray")
from mesa_lm.pipelines.settings import Sweep
from mesa_lm.pipelines.shards import plan_shards

BASE = {"name": "a", "methods": ["mesa", "origin"], "lengths": [80, 130]}


def test_every_sample_is_in_one_shard_and_the_costliest_come_first(tmp_path):
    tasks = [{"task": "passkey_long", "metadata": {"num_samples": 5}}, {"task": "longeval_lines_600", "limit": 3}]
    shards = plan_shards(Sweep(**BASE, out=tmp_path, tasks=tasks, shard_tokens=300))
    samples = {}
    for shard in shards:
        cell = (*shard.entry, shard.leaf)
        samples.setdefault(cell, []).extend(range(shard.start, shard.stop))
        assert shard.cost == shard.length * (shard.stop - shard.start)
        assert shard.cost <= 300 or shard.stop - shard.start == 1
    assert {cell: sorted(found) for cell, found in samples.items()} == {
        (0, method, task, leaf): list(range(count))
        for method in (0, 1)
        for task, leaf, count in ((0, "passkey_long_80", 5), (0, "passkey_long_130", 5), (1, "longeval_lines_600", 3))
    }
    assert [shard.cost for shard in shards] == sorted((shard.cost for shard in shards), reverse=True)
    assert len({shard.key for shard in shards}) == len(shards)


def test_a_task_with_examples_is_not_cut(tmp_path):
    tasks = [{"task": "passkey_long_80", "metadata": {"num_samples": 5}, "num_fewshot": 1}]
    (shard,) = plan_shards(Sweep(**BASE | {"methods": ["mesa"]}, out=tmp_path, tasks=tasks, shard_tokens=100))
    assert (shard.start, shard.stop) == (0, 5)


@pytest.mark.parametrize(("given", "count"), [("do_sample=True,temperature=0.5", 1), ("temperature=0.5", 4), ({}, 4)])
def test_a_task_whose_answers_are_drawn_is_not_cut(tmp_path, given, count):
    task = {"task": "passkey_long", "metadata": {"num_samples": 4}, "gen_kwargs": given}
    sweep = Sweep(name="a", methods=["mesa"], lengths=[80], out=tmp_path, tasks=[task], shard_tokens=1)
    assert len(plan_shards(sweep)) == count


def test_a_shard_says_what_it_is(tmp_path):
    task = {"task": "passkey_long_80", "metadata": {"num_samples": 2}}
    sweep = Sweep(name="a", out=tmp_path, methods=[{"method": "rerope", "window": 40}], tasks=[task])
    (shard,) = plan_shards(sweep)
    assert shard.described(sweep) == "demo, rerope (window=40), passkey_long_80, samples 0 to 1"
    assert shard.group == "passkey_long"


def test_a_folder_of_tasks_that_is_not_there_is_refused(tmp_path):
    sweep = Sweep(name="a", out=tmp_path, methods=["mesa"], tasks=["mine"], include_path=tmp_path / "none")
    with pytest.raises(UsageError, match="include_path: there is no folder '.*/none'"):
        plan_shards(sweep)
