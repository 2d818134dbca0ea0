"""Labels of methods: what differs from the defaults, and nothing else."""

from dataclasses import asdict

import pytest
from transformers import LlamaConfig

import mesa_lm
from mesa_lm.reporting.method_labels import method_label


def label(name, given, train_length=512, **changes):
    method = mesa_lm.make_method(name, **given).bind(LlamaConfig(max_position_embeddings=512))
    return method_label(name, given, asdict(method) | changes, train_length)


@pytest.mark.parametrize(
    ("name", "given", "shown"),
    [
        ("mesa", {}, "mesa"),
        ("mesa", {"weave": "stair", "first_chunk": 25, "log_n": True}, "mesa"),
        ("mesa", {"last_chunk": 64}, "mesa (last_chunk=64)"),
        ("mesa", {"last_chunk": 64, "reweave_every": 128}, "mesa (last_chunk=64, reweave_every=128)"),
        ("mesa", {"variant": "released"}, "mesa (variant=released)"),
        ("mesa", {"train_length": 512}, "mesa (train_length=512)"),
        ("yarn", {"factor": 16}, "yarn"),
        ("yarn", {"factor": 4.0}, "yarn (factor=4)"),
        ("yarn", {"mscale": 1.0, "mscale_all_dim": 0.5}, "yarn (mscale=1, mscale_all_dim=0.5)"),
        ("origin", {}, "origin"),
    ],
)
def test_a_label_names_what_differs_from_the_defaults(name, given, shown):
    assert label(name, given) == shown


def test_a_default_of_another_version_is_named():
    assert label("rerope", {}, log_n=False) == "rerope (log_n=False)"
    assert label("rerope", {}, window=64) == "rerope (window=64)"


def test_without_a_training_length_what_follows_from_it_is_named_where_it_was_given():
    assert label("rerope", {}, train_length=None) == "rerope"
    assert label("rerope", {"window": 64}, train_length=None) == "rerope (window=64)"


@pytest.mark.parametrize(
    ("name", "used"),
    [("not_installed", {"keys": 3}), ("rerope", {"keys": 3}), ("rerope", {"keys": 3, "window": [1]})],
    ids=["no method", "no parameter", "no number"],
)
def test_what_is_not_known_here_is_named_as_it_was_given(name, used):
    assert method_label(name, {"keys": 3, "dtype": "auto"}, used, 512) == f"{name} (keys=3)"
