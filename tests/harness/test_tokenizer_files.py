"""Tokenizers as the models of the paper ship them: a SentencePiece file and no tokenizer.json."""

import json
import shutil

import lm_eval
import pytest
import sentencepiece
import transformers
from tiny_models import tiny_model

from mesa_lm.errors import ModelError
from mesa_lm.harness.model import MesaHFLM

SETTINGS = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Llama with a SentencePiece tokenizer, as Vicuna and Open-LLaMA have."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    text = folder / "text.txt"
    text.write_text(transformers.LlamaConfig.__doc__ * 3)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    tiny_model(vocab_size=400, max_position_embeddings=256).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    for path in (text, folder / "tokenizer.vocab"):
        path.unlink()
    return folder


def test_lengths_are_counted_in_its_tokens(folder):
    task = "passkey_long_600"
    found = lm_eval.simple_evaluate(
        model="mesa-hf", model_args={"pretrained": str(folder)}, tasks=[task], limit=2, log_samples=True
    )
    encode = MesaHFLM(pretrained=str(folder)).tok_encode
    for sample in found["samples"][task]:
        prompt = sample["arguments"][0][0]
        assert 0 <= 600 - len(encode(prompt)) <= 40  # whole sentences of filler, and room for the answer


def test_a_broken_file_is_one_line(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "tokenizer.model").write_bytes(b"no tokenizer")
    with pytest.raises(ModelError, match=r"^cannot load the tokenizer"):
        MesaHFLM(pretrained=str(broken))
