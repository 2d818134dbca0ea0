"""Time a loglikelihood task of many questions about one long document, with and without reuse of chunks.

`python -m mesa_lm.bench.sharing` prints both times; the model is the demo model unless `--model` names another.
"""

import argparse
import json
import sys
import time

import torch

from mesa_lm.demo import MODEL_PATH
from mesa_lm.harness import MesaHFLM
from mesa_lm.methods import Mesa
from mesa_lm.scoring import Request

ANSWER_TOKENS = 5


def shared_requests(tokens: int, questions: int, vocabulary: int) -> list[Request]:
    """Return questions of 20 to 50 tokens about a document of random tokens.

    Args:
        tokens: Length of the document.
        questions: Their number.
        vocabulary: Size of the vocabulary.
    """
    generator = torch.Generator().manual_seed(0)

    def some(count: int) -> list[int]:
        return torch.randint(vocabulary, (count,), generator=generator).tolist()

    document = some(tokens)
    return [(None, document + some(20 + 31 * number // questions), some(ANSWER_TOKENS)) for number in range(questions)]


def main(arguments: list[str]) -> None:
    """Measure, and print JSON.

    Args:
        arguments: Of the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL_PATH), help="folder or name on the hub; default: the demo model")
    parser.add_argument("--tokens", type=int, default=32768, help="length of the document (default: 32768)")
    parser.add_argument("--questions", type=int, default=16, help="questions about it (default: 16)")
    given = parser.parse_args(arguments)
    model = MesaHFLM(pretrained=given.model, batch_size=1)
    resolved = model.method
    assert isinstance(resolved, Mesa) and resolved.train_length is not None and resolved.first_chunk is not None
    width = resolved.train_length - resolved.first_chunk
    times, answers = {}, {}
    for name, store_gib in (("without", 0), ("with", None)):
        run = MesaHFLM(pretrained=given.model, batch_size=1, chunk_width=width, chunk_store_gib=store_gib)
        requests = shared_requests(given.tokens, given.questions, run.model.config.vocab_size)
        run._loglikelihood_tokens(requests[:1], disable_tqdm=True)  # starts threads and kernels
        handle = run.model._mesa_handle
        handle.reuse_chunks(0 if handle.store is None else handle.store.budget_bytes)  # forget what this computed
        start = time.perf_counter()
        answers[name] = run._loglikelihood_tokens(requests, disable_tqdm=True)
        times[name] = time.perf_counter() - start
    difference = max(abs(a - b) for (a, _), (b, _) in zip(answers["with"], answers["without"], strict=True))
    print(
        json.dumps(
            {
                "model": given.model,
                "tokens": given.tokens,
                "questions": given.questions,
                "chunk_width": width,
                "without_s": round(times["without"], 2),
                "with_s": round(times["with"], 2),
                "speed_up": round(times["without"] / times["with"], 2),
                "largest_difference": difference,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
