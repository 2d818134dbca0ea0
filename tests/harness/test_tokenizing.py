"""The evaluated model's tokenizer and how it counts."""

from pathlib import Path

import pytest
from lm_eval.models.huggingface import HFLM
from tiny_models import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mesa_lm.errors import ModelError, UsageError
from mesa_lm.harness.tokenizing import (
    TextEncoding,
    encoding_of,
    evaluated_model,
    load_tokenizer,
    task_encoding,
    token_counter,
)

TEXTS = ["", "a", "a b c", "<s>a b", "  a\n\nb ", "b</s>"]


def words(bos: str = "<s>", single: str = "<s> $A") -> PreTrainedTokenizerFast:
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3, "b": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token="</s>", unk_token="<unk>")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    words().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["tokenizer", "pretrained", "model"])
def test_it_is_the_one_that_the_model_names(folder: Path, name: str) -> None:
    assert load_tokenizer({"tokenizer": None, name: str(folder)}).get_vocab() == words().get_vocab()


def test_tokenizer_goes_before_model(folder: Path) -> None:
    found = load_tokenizer({"pretrained": "/no/such/folder", "tokenizer": str(folder)})
    assert found.get_vocab() == words().get_vocab()


def test_one_already_loaded_is_used_as_it_is() -> None:
    tokenizer = words()
    assert load_tokenizer({"tokenizer": tokenizer}) is tokenizer


def test_it_is_loaded_once(folder: Path) -> None:
    assert load_tokenizer({"pretrained": str(folder)}) is load_tokenizer({"pretrained": str(folder), "dtype": "float"})


def test_without_a_model_it_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing says here which it is; name it: --metadata"):
        task_encoding({"method": "mesa"})


def test_it_is_the_evaluated_models_unless_another_is_named(folder: Path) -> None:
    evaluated = TextEncoding(words(bos="</s>"), add_bos_token=True, chat_template_args={"a": 1})
    with evaluated_model(lambda: evaluated):
        assert task_encoding({"pretrained": "/no/such/folder", "add_bos_token": False}) is evaluated
        assert task_encoding({"tokenizer": str(folder)}).tokenizer.bos_token == "<s>"
    assert task_encoding({"pretrained": str(folder)}).tokenizer.bos_token == "<s>"


def test_prompts_are_counted_as_they_are_sent() -> None:
    encoding = TextEncoding(words(), rendered=lambda prompt: f"a a {prompt}")
    assert (encoding.count("b"), encoding.count_prompt("b")) == (2, 4)


def test_a_model_without_a_tokenizer_of_transformers_tells_nothing() -> None:
    class Remote:
        @property
        def tokenizer(self) -> None:
            raise OSError("cannot be reached")

    assert encoding_of(object()) is encoding_of(Remote()) is None


def test_a_missing_one_is_an_error_of_one_line() -> None:
    with pytest.raises(ModelError, match="cannot load the tokenizer '/no/such/folder'") as caught:
        load_tokenizer({"tokenizer": "/no/such/folder"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("add_bos_token", [None, True, False])
@pytest.mark.parametrize(("bos", "single"), [("<s>", "<s> $A"), ("<s>", "$A </s>"), (None, "$A")])
def test_counts_are_lm_evals(bos: str, single: str, add_bos_token: bool | None) -> None:
    tokenizer = words(bos, single)
    model = HFLM(tiny_model(), tokenizer=tokenizer, add_bos_token=add_bos_token, device="cpu")
    count = token_counter(tokenizer, add_bos_token)
    assert [count(text) for text in TEXTS] == [len(model.tok_encode(text)) for text in TEXTS]
