"""A tokenizer with one token for each printable character, for tiny models of 101 tokens."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each printable character and a start token."""
    vocabulary = {"<s>": 1, **{chr(32 + code): 2 + code for code in range(95)}, "?": 97}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="~", unk_token="?")
