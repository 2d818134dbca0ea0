"""What counts as a secret, and what does not."""

import pytest

from mesa_lm.pipelines.secrets import HIDDEN, without_secrets


def test_what_has_the_name_of_a_secret_is_hidden_wherever_it_stands():
    given = {
        "pretrained": "org/model",
        "token": "hf_1",
        "args": [{"hf_token": "hf_2", "WANDB_API_KEY": "3", "password": "4", "api-key": "6"}],
        "text": "pretrained=x,token=hf_5,tokenizer=y",
    }
    hidden = without_secrets(given)
    assert not any(secret in str(hidden) for secret in ("hf_1", "hf_2", "'3'", "'4'", "hf_5", "'6'"))
    assert hidden["text"] == "pretrained=x,token=[hidden],tokenizer=y"
    assert hidden["pretrained"] == "org/model"


@pytest.mark.parametrize(
    "value",
    [
        "hf_" + "aB3" * 11,
        "sk-" + "x1" * 12,
        "ghp_" + "a" * 36,
        "AKIA" + "ABCD" * 4,
        "wandb_v1_" + "a" * 30,
        "https://me:word@example.org/models",
    ],
)
def test_what_looks_like_a_key_is_hidden_whatever_its_name(value):
    assert HIDDEN in without_secrets({"comment": f"use {value} here"})["comment"]
    assert value not in str(without_secrets({"comment": f"use {value} here"}))


def test_options_whose_names_only_sound_like_secrets_stay():
    options = {
        "think_end_token": "</think>",
        "tokenizer": "org/tokenizer",
        "max_tokens": 7,
        "text": "think_end_token=a,add_bos_token=True,no_split_token=b",
        "revision": "f" * 40,
        "path": "sk-learn/hf_models",
    }
    assert without_secrets(options) == options
