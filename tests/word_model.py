"""A tiny Llama whose tokens are words, and requests to it in lm-eval's form."""

import torch
import transformers
from lm_eval.api.instance import Instance
from tokenizers import Tokenizer, models, pre_tokenizers

TRAIN_LENGTH = 97
WORDS = [f"w{index}" for index in range(53)]


def save_model(path):
    vocab = {word: index for index, word in enumerate(["<s>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(path)
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=44,
        intermediate_size=61,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=22,
        max_position_embeddings=TRAIN_LENGTH,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)


def text(length, seed):
    generator = torch.Generator().manual_seed(seed)
    return " ".join(WORDS[index] for index in torch.randint(len(WORDS), (length,), generator=generator))


def requests(kind, *arguments):
    return [
        Instance(request_type=kind, doc={}, arguments=arguments_of_one, idx=index, metadata=("task", index, 1))
        for index, arguments_of_one in enumerate(arguments)
    ]


def pairs(lengths):
    """A context of each length, with continuations of 1 to 4 words."""
    return [(text(length, length), " " + text(1 + length % 4, 7)) for length in lengths]
