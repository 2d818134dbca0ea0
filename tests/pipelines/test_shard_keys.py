"""What makes the answers of a shard those of another one."""

from functools import partial

import byte_model
import pytest

from mesa_lm.errors import ModelError, UsageError

pytest.importorskip("ray")
from mesa_lm.pipelines import shard_keys
from mesa_lm.pipelines.entry_tasks import load_leaves
from mesa_lm.pipelines.settings import ModelEntry, Sweep
from mesa_lm.pipelines.shard_keys import asking_digest, hub_commit, weights_identity
from mesa_lm.pipelines.shards import plan_shards


def test_a_model_that_is_trained_again_in_its_folder_is_another_one(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"first")
    model = ModelEntry(pretrained=str(tmp_path))
    before = weights_identity(model)
    assert before == weights_identity(model)
    file.write_bytes(b"other")
    assert weights_identity(model) != before


def test_a_model_of_the_hub_is_known_by_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(shard_keys, "hf_hub_download", partial(shard_keys.hf_hub_download, cache_dir=tmp_path))
    model = ModelEntry(pretrained="some/model")
    assert weights_identity(model) == [("commit", "")]
    for commit in ("a" * 40, "b" * 40):  # the hub's cache, before and after somebody has pushed
        snapshot = tmp_path / "models--some--model" / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
        (snapshot.parents[1] / "refs").mkdir(exist_ok=True)
        (snapshot.parents[1] / "refs" / "main").write_text(commit)
        hub_commit.cache_clear()
        assert weights_identity(model) == [("commit", commit)]
    hub_commit.cache_clear()


def test_a_task_that_asks_or_scores_otherwise_is_another_one(tmp_path):
    sweep = Sweep(name="a", out=tmp_path, methods=["mesa"], tasks=["passkey_long_512"])
    leaf = load_leaves(sweep, sweep.models[0], sweep.tasks[0])["passkey_long_512"]
    again = load_leaves(sweep, sweep.models[0], sweep.tasks[0])["passkey_long_512"]
    before = asking_digest(leaf)
    assert asking_digest(again) == before
    again.config.generation_kwargs["max_gen_toks"] += 1
    assert asking_digest(again) != before


def test_edited_sources_of_the_engine_or_of_the_task_are_another_key(tmp_path, monkeypatch):
    sweep = Sweep(name="a", out=tmp_path, methods=["mesa"], tasks=["passkey_long_512"], shard_tokens=10**9)
    keys = {plan_shards(sweep)[0].key}
    monkeypatch.setattr(shard_keys, "package_digest", lambda: "edited")
    keys.add(plan_shards(sweep)[0].key)
    monkeypatch.setattr("mesa_lm.pipelines.entry_tasks.task_digest", lambda yaml: "edited")
    keys.add(plan_shards(sweep)[0].key)
    assert len(keys) == 3


def test_a_key_names_model_method_task_samples_seed_and_documents(tmp_path):
    base = {"name": "a", "out": tmp_path, "methods": ["mesa"], "tasks": [{"task": "passkey_long", "limit": 2}]}
    base |= {"lengths": [80], "shard_tokens": 100}
    variants = [
        {},
        {"models": [{"pretrained": None, "dtype": "bfloat16"}]},
        {"models": [{"args": {"think_end_token": "a"}}]},
        {"models": [{"args": {"think_end_token": "b"}}]},
        {"models": [{"args": {"token": "a"}}]},
        {"methods": [{"method": "mesa", "reserve": 1}]},
        {"tasks": [{"task": "passkey_long", "limit": 2, "metadata": {"seed": 1}}]},
        {"tasks": [{"task": "passkey_long", "limit": 2, "gen_kwargs": {"max_gen_toks": 5}}]},
        {"tasks": [{"task": "passkey_long", "limit": 2, "system_instruction": "Be brief."}]},
        {"batch_size": 2},
        {"seed": 1},
    ]
    keys = [{shard.key for shard in plan_shards(Sweep(**base | variant))} for variant in variants]
    assert [len(found) for found in keys] == [2] * len(variants)  # one for each sample
    assert len(set().union(*keys)) == 2 * len(variants)
    same = [{"name": "b"}, {"out": tmp_path / "other"}, {"workers": {"threads": 2}}, {"max_attempts": 1}]
    assert all({shard.key for shard in plan_shards(Sweep(**base | other))} == keys[0] for other in same)


def test_a_chat_template_is_part_of_a_key_and_must_be_there(tmp_path):
    model = byte_model.save_model(tmp_path / "model", chat_template="{{ messages[0].content }}!")
    base = {"name": "a", "out": tmp_path, "models": [{"pretrained": model}], "methods": ["mesa"], "lengths": [500]}
    plain, chat, flat = (
        plan_shards(Sweep(**base, tasks=[{"task": "passkey_long", "limit": 1, **options}]))
        for options in (
            {},
            {"apply_chat_template": True},
            {"apply_chat_template": True, "fewshot_as_multiturn": False},
        )
    )
    assert len({shard.key for shard in [*plain, *chat, *flat]}) == 3
    with pytest.raises(ModelError, match="apply_chat_template: .* has no chat template; leave it out"):
        plan_shards(Sweep(**base | {"models": [{}]}, tasks=[{"task": "passkey_long", "apply_chat_template": True}]))
    several = byte_model.save_model(tmp_path / "several", chat_template={"default": "a", "rag": "b"})
    asked = [{"task": "passkey_long", "apply_chat_template": "rga"}]
    with pytest.raises(UsageError, match="unknown chat template 'rga'; did you mean 'rag'?"):
        plan_shards(Sweep(**base | {"models": [{"pretrained": several}]}, tasks=asked))
