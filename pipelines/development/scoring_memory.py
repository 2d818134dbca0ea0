"""Peak memory of scoring long inputs with a large vocabulary: `mesa-hf` beside lm-eval's own `hf`.

    python -m pipelines.scoring_memory --limit-gib 12

Each cell is a process of its own with a limit on its memory, so that running out of it is a result, too.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

VOCABULARY = 131072
TRAIN_LENGTH = 2048
SCORED = 256  # tokens of a continuation
LENGTHS = (4096, 16384, 65536)
MODELS = ("hf", "mesa-hf")
KINDS = ("loglikelihood", "loglikelihood_rolling")
OUT_OF_MEMORY = 3  # exit status of a cell


def main() -> None:
    """Measure all cells and print them as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--limit-gib", type=int, default=12, help="memory that a process may have (default: %(default)s)"
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens (default: %(default)s)")
    parser.add_argument("--cell", nargs=4, help=argparse.SUPPRESS)  # model, request, length, folder
    options = parser.parse_args()
    if options.cell:
        _limit_memory(options.limit_gib)
        model, kind, length, folder = options.cell
        print(json.dumps(measure(model, kind, int(length), folder)))
        return
    print("| request | tokens | " + " | ".join(f"`{model}`, GiB" for model in MODELS) + " |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        build_model(folder)
        bar = tqdm(total=len(KINDS) * len(options.lengths) * len(MODELS), desc="Cells")
        for kind in KINDS:
            for length in options.lengths:
                cells = []
                for model in MODELS:
                    bar.set_postfix(model=model, tokens=length)
                    cells.append(run_cell(model, kind, length, folder, options.limit_gib))
                    bar.update(1)
                print(f"| {kind} | {length:,} | {' | '.join(cells)} |", flush=True)


def run_cell(model: str, kind: str, length: int, folder: str, limit_gib: int) -> str:
    """Measure one cell in a process of its own.

    Args:
        model: One of `MODELS`.
        kind: One of `KINDS`.
        length: Tokens.
        folder: Of the model.
        limit_gib: Memory that the process may have.

    Returns:
        Peak memory in GiB, or that it was too much.

    Raises:
        RuntimeError: The process failed for another reason.
    """
    command = [sys.executable, "-m", "pipelines.scoring_memory", "--limit-gib", str(limit_gib)]
    done = subprocess.run([*command, "--cell", model, kind, str(length), folder], capture_output=True, text=True)
    if done.returncode == OUT_OF_MEMORY:
        return f"out of memory (more than {limit_gib})"
    if done.returncode:
        raise RuntimeError(f"{model}, {kind}, {length} tokens failed:\n{done.stderr}")
    return f"{json.loads(done.stdout.splitlines()[-1]):.1f}"


def measure(model: str, kind: str, length: int, folder: str) -> float:
    """Run one request and return the peak memory of this process, GiB; exits where there is not enough.

    Args:
        model: One of `MODELS`.
        kind: One of `KINDS`; `loglikelihood` scores the last 256 tokens.
        length: Tokens.
        folder: Of the model.
    """
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    words = [f"w{i * 7919 % (VOCABULARY - 3)}" for i in range(length)]
    document = " ".join(words[:-SCORED]), " " + " ".join(words[-SCORED:])
    arguments = document if kind == "loglikelihood" else ("".join(document),)
    # hf cuts inputs to max_length.
    settings = {"max_length": length + 1} if model == "hf" else {}
    try:
        scorer = get_model(model)(pretrained=folder, device="cpu", batch_size=1, **settings)
        getattr(scorer, kind)([Instance(request_type=kind, doc={}, arguments=arguments, idx=0)])
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error) and not isinstance(error, MemoryError):
            raise
        sys.exit(OUT_OF_MEMORY)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def build_model(folder: str) -> None:
    """Save a random model of one narrow layer, so that logits are what takes memory.

    Args:
        folder: Where to.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<unk>"]
    names = [*special, *(f"w{i}" for i in range(VOCABULARY - len(special)))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
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
    LlamaForCausalLM(config).save_pretrained(Path(folder))


def _limit_memory(gib: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (gib * 2**30, gib * 2**30))


if __name__ == "__main__":
    main()
