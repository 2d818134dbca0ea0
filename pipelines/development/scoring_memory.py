"""Measure the peak memory of scoring long inputs with a large vocabulary: `mesa-hf` beside lm-eval's own `hf`.

    python -m mesa_lm.pipelines.development.scoring_memory --limit-gib 12

Each cell is a process of its own with a limit on its memory, so that running out of it is a result, too.
"""

import resource
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import typer

VOCABULARY = 131072
TRAIN_LENGTH = 2048
SCORED = 256  # tokens of a continuation
LENGTHS = [4096, 16384, 65536]
MODELS = ("hf", "mesa-hf")
KINDS = ("loglikelihood", "loglikelihood_rolling")
SPECIAL = ("<s>", "</s>", "<unk>")


def compare_scoring(
    limit_gib: Annotated[int, typer.Option(help="Memory that a process may have.")] = 12,
    length: Annotated[list[int], typer.Option(help="Tokens; may be given again.")] = LENGTHS,
    vocabulary: Annotated[int, typer.Option(help="Size of the vocabulary.")] = VOCABULARY,
) -> None:
    """Measure all cells and print them as a table."""
    print("| request | tokens | " + " | ".join(f"`{model}`, GiB" for model in MODELS) + " |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        save_narrow_model(Path(folder), vocabulary)
        for kind in KINDS:
            for tokens in length:
                cells = [measured_cell(model, kind, tokens, folder, limit_gib) for model in MODELS]
                print(f"| {kind} | {tokens:,} | {' | '.join(cells)} |", flush=True)


def measured_cell(model: str, kind: str, length: int, folder: str, limit_gib: int) -> str:
    """Measure one cell in a process of its own.

    Args:
        model: One of `MODELS`.
        kind: One of `KINDS`.
        length: Tokens.
        folder: Of the model.
        limit_gib: Memory that the process may have.

    Returns:
        Peak memory in GiB, or that it was too much.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), _limit_memory, (limit_gib,)) as process:
        try:
            return f"{process.submit(scoring_peak, model, kind, length, folder).result():.1f}"
        except (RuntimeError, MemoryError) as error:
            if "memory" not in str(error) and not isinstance(error, MemoryError):
                raise
            return f"out of memory (more than {limit_gib})"


def scoring_peak(model: str, kind: str, length: int, folder: str) -> float:
    """Run one request and return the peak memory of this process, GiB.

    Args:
        model: One of `MODELS`.
        kind: One of `KINDS`; `loglikelihood` scores the last 256 tokens.
        length: Tokens.
        folder: Of the model.
    """
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model
    from transformers import AutoConfig

    names = AutoConfig.from_pretrained(folder).vocab_size - len(SPECIAL)
    words = [f"w{i * 7919 % names}" for i in range(length)]
    document = " ".join(words[:-SCORED]), " " + " ".join(words[-SCORED:])
    arguments = document if kind == "loglikelihood" else ("".join(document),)
    # hf cuts inputs to max_length.
    settings = {"max_length": length + 1} if model == "hf" else {}
    scorer = get_model(model)(pretrained=folder, device="cpu", batch_size=1, **settings)
    getattr(scorer, kind)([Instance(request_type=kind, doc={}, arguments=arguments, idx=0)], disable_tqdm=True)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def save_narrow_model(folder: Path, vocabulary: int) -> None:
    """Save a random model of one narrow layer, so that logits are what takes memory.

    Args:
        folder: Where to.
        vocabulary: Its size.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = [*SPECIAL, *(f"w{i}" for i in range(vocabulary - len(SPECIAL)))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=TRAIN_LENGTH,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def _limit_memory(gib: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (gib * 2**30, gib * 2**30))


if __name__ == "__main__":
    typer.run(compare_scoring)
