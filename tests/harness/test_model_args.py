"""Model arguments: what is refused before weights are loaded, what is left to transformers."""

import pytest
import torch
import transformers
from word_model import TRAIN_LENGTH

from mesa_lm.errors import MesaError, MethodError, ModelError, UsageError
from mesa_lm.harness.model import HF_KEYWORDS, MesaHFLM
from mesa_lm.harness.model_args import check_store, checked_source, split_model_args


@pytest.fixture
def no_weights(monkeypatch):
    def load(*args, **kwargs):
        pytest.fail("weights were loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "messa"}, MethodError, r"unknown method 'messa'; did you mean 'mesa'\? \(allowed: .*origin"),
        ({"method": None}, MethodError, "unknown method 'None'"),
        (
            {"frist_chunk": 3},
            MethodError,
            r"unknown parameter 'frist_chunk' .*did you mean 'first_chunk'\?.*allowed: tr",
        ),
        ({"batchsize": 3}, MethodError, r"did you mean 'batch_size'\?"),
        ({"method": "origin", "first_chunk": 3}, MethodError, "a parameter of mesa .allowed: none;"),
        ({"first_chunk": 0}, MethodError, "first_chunk must be an integer of at least 1, found 0"),
        ({"first_chunk": TRAIN_LENGTH}, MethodError, f"train_length={TRAIN_LENGTH}"),
        ({"pretrained": "/nowhere/at/all"}, ModelError, "no model at '/nowhere/at/all'"),
        ({"pretrained": 7}, ModelError, "found 7"),
        # The method is looked at first.
        ({"pretrained": "/nowhere/at/all", "method": "messa"}, MethodError, "unknown method"),
    ],
)
def test_wrong_arguments_are_refused_before_weights_are_loaded(model_path, no_weights, options, error, message):
    with pytest.raises(error, match=message) as caught:
        MesaHFLM(**{"pretrained": model_path, "device": "cpu", **options})
    assert "\n" not in str(caught.value)


def test_an_unsupported_model_is_refused_before_weights_are_loaded(model_path, no_weights, tmp_path):
    transformers.GPT2Config(n_layer=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="'gpt2' is not supported"):
        MesaHFLM(pretrained=str(tmp_path), tokenizer=model_path, device="cpu")


def test_an_encoder_decoder_model_is_refused(model_path, no_weights, tmp_path):
    transformers.T5Config(num_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="causal language models only, found 't5'"):
        MesaHFLM(pretrained=str(tmp_path), tokenizer=model_path, device="cpu", method="origin")


def test_a_keyword_that_transformers_refuses_is_explained(model_path):
    with pytest.raises(
        MethodError, match=r"unknown parameter 'chunk' of method 'mesa'; did you mean .*allowed: train_le"
    ):
        MesaHFLM(pretrained=model_path, device="cpu", chunk=3)


def test_a_folder_without_a_model_and_an_unreachable_name_give_one_line(tmp_path, model_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for pretrained in (str(tmp_path), "someone/no-such-model"):
        with pytest.raises(ModelError, match="cannot load the model") as caught:
            MesaHFLM(pretrained=pretrained, device="cpu")
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        MesaHFLM(pretrained=model_path, tokenizer=str(tmp_path), device="cpu")


def test_checked_source_names_the_nearest_folder(tmp_path, monkeypatch):
    (tmp_path / "llama-7b").mkdir()
    with pytest.raises(MesaError, match=r"did you mean '.*llama-7b'"):
        checked_source(str(tmp_path / "lama-7b"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checked_source("~/llama-7b") == str(tmp_path / "llama-7b")
    assert checked_source("someone/a-model") == "someone/a-model"


def test_keywords_of_transformers_are_left_to_it():
    known = {**transformers.LlamaConfig().to_dict(), "device_map": 1, "attn_implementation": 1, "load_in_8bit": 1}
    known |= dict.fromkeys(["torch_dtype", "max_memory", "token", "cache_dir", "local_files_only", "use_safetensors"])
    _, others = split_model_args("mesa", known, HF_KEYWORDS)
    assert others == known


def test_hf_options_reach_transformers(model_path):
    lm = MesaHFLM(pretrained=model_path, device="cpu", attn_implementation="eager", dtype="bfloat16", last_chunk=29)
    assert lm.model.config._attn_implementation == "eager"
    assert lm.model.dtype == torch.bfloat16
    assert lm.method.last_chunk == 29


@pytest.mark.parametrize("size", [-1, float("inf"), "2", True])
def test_an_impossible_size_of_the_chunk_store_is_refused(size):
    with pytest.raises(UsageError, match="chunk_store_gib must be a number of GiB, 0 for none"):
        check_store(size)
