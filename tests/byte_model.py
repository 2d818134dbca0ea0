"""A tiny Llama whose tokens are bytes: it makes several times as many of a text as the demo model does."""

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

TRAIN_LENGTH = 97


def save_model(path: object, **options: object) -> str:
    """Save model and tokenizer in a folder, and return it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **options
    ).save_pretrained(str(path))
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=12,
        intermediate_size=17,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=6,
        max_position_embeddings=TRAIN_LENGTH,
        bos_token_id=0,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(str(path))
    return str(path)
