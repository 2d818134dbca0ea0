"""Time a loglikelihood task of many questions about one long document, with and without what requests share.

`python -m mesa_lm.pipelines.development.chunk_sharing` prints both times; the model is the demo model unless `--model`
names another. Under
Mesa, questions share middle chunks; under methods that can, a question's choices share the prefill of their context.
"""

import argparse
import json
import sys
import time

import torch

from mesa_lm.demo import MODEL_PATH
from mesa_lm.harness.model import MesaHFLM
from mesa_lm.harness.scoring import ScoredRequest
from mesa_lm.methods.mesa import Mesa

ANSWER_TOKENS = 5


def shared_requests(tokens: int, questions: int, choices: int, vocabulary: int) -> list[ScoredRequest]:
    """Return questions of 20 to 50 tokens about a document of random tokens, with their choices.

    Args:
        tokens: Length of the document.
        questions: Their number.
        choices: Of each question; each has one token more than the one before.
        vocabulary: Size of the vocabulary.
    """
    generator = torch.Generator().manual_seed(0)

    def some(count: int) -> list[int]:
        return torch.randint(vocabulary, (count,), generator=generator).tolist()

    document = some(tokens)
    contexts = [document + some(20 + 31 * number // questions) for number in range(questions)]
    return [(None, context, some(ANSWER_TOKENS + place)) for context in contexts for place in range(choices)]


def main(arguments: list[str]) -> None:
    """Measure, and print JSON.

    Args:
        arguments: Of the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL_PATH), help="folder or name on the hub; default: the demo model")
    parser.add_argument("--tokens", type=int, default=32768, help="length of the document (default: 32768)")
    parser.add_argument("--questions", type=int, default=16, help="questions about it (default: 16)")
    parser.add_argument("--choices", type=int, default=1, help="choices of each question (default: 1)")
    parser.add_argument("--method", default="mesa", help="method (default: mesa)")
    given = parser.parse_args(arguments)
    resolved = MesaHFLM(pretrained=given.model, method=given.method, batch_size=1).method
    parameters = {}
    if isinstance(resolved, Mesa):
        assert resolved.train_length is not None and resolved.first_chunk is not None
        parameters["chunk_width"] = resolved.train_length - resolved.first_chunk
    times, answers = {}, {}
    for name, store_gib in (("without", 0), ("with", None)):
        run = MesaHFLM(
            pretrained=given.model, method=given.method, batch_size=1, chunk_store_gib=store_gib, **parameters
        )
        if name == "without":
            run.share_beyond = None
        requests = shared_requests(given.tokens, given.questions, given.choices, run.model.config.vocab_size)
        run._loglikelihood_tokens(requests[:1], disable_tqdm=True)  # starts threads and kernels
        handle = run.handle
        assert handle is not None
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
                "choices": given.choices,
                "method": given.method,
                **parameters,
                "without_s": round(times["without"], 2),
                "with_s": round(times["with"], 2),
                "speed_up": round(times["without"] / times["with"], 2),
                "largest_difference": difference,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
