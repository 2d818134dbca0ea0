"""Weights quantised while they are loaded, in the form that transformers 5 takes."""

import pytest
from lm_eval.models.huggingface import HFLM
from transformers import BitsAndBytesConfig

from mesa_lm.errors import ModelError, UsageError
from mesa_lm.harness.model import MesaHFLM

FOUR_BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True}


class LoadingError(Exception):
    """Weights would be loaded now."""


def test_settings_reach_transformers(monkeypatch):
    def loading(self, **keywords):
        raise LoadingError(keywords["quantization_config"])

    monkeypatch.setattr(HFLM, "_create_model", loading)
    with pytest.raises(LoadingError) as caught:
        MesaHFLM(quantization_config=FOUR_BITS)
    (found,) = caught.value.args
    assert isinstance(found, BitsAndBytesConfig)
    assert found.load_in_4bit
    assert FOUR_BITS == {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.mark.parametrize("keyword", ["load_in_4bit", "load_in_8bit", "bnb_4bit_compute_dtype"])
def test_keywords_of_transformers_4_are_answered_with_those_of_5(keyword):
    with pytest.raises(UsageError, match=rf"{keyword}: transformers 5 takes these inside quantization_config"):
        MesaHFLM(**{keyword: True})


@pytest.mark.parametrize("wrong", [8, "int8", {"load_in_4bit": True}, {"quant_method": 4}])
def test_what_names_no_quant_method_is_refused(wrong):
    with pytest.raises(UsageError, match="must be a mapping with a quant_method"):
        MesaHFLM(quantization_config=wrong)


def test_an_unknown_quant_method_is_one_line():
    with pytest.raises(ModelError, match="Unknown quantization type, got bitsandbits"):
        MesaHFLM(quantization_config={"quant_method": "bitsandbits"})


def test_a_loaded_model_is_not_quantised(model_path):
    model = MesaHFLM(pretrained=model_path, method="origin").model
    with pytest.raises(ModelError, match="is loaded already"):
        MesaHFLM(pretrained=model, quantization_config=FOUR_BITS)
