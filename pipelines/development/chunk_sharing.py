"""Time a loglikelihood task of many questions about one long document, with and without what requests share.

    python -m mesa_lm.pipelines.development.chunk_sharing --questions 16

Under Mesa, questions share middle chunks; under methods that can, a question's choices share the prefill of their
context.
"""

import json
import time
from typing import Annotated, Any

import torch
import typer

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


def compare_sharing(
    model: Annotated[str, typer.Option(help="Folder or name on the hub.")] = str(MODEL_PATH),
    tokens: Annotated[int, typer.Option(help="Length of the document.")] = 32768,
    questions: Annotated[int, typer.Option(help="Questions about it.")] = 16,
    choices: Annotated[int, typer.Option(help="Choices of each question.")] = 1,
    method: Annotated[str, typer.Option(help="Method.")] = "mesa",
) -> None:
    """Measure both times, and print JSON."""
    first = MesaHFLM(pretrained=model, method=method, batch_size=1)
    requests = shared_requests(tokens, questions, choices, first.model.config.vocab_size)
    first._loglikelihood_tokens(requests[:1], disable_tqdm=True)  # starts threads and kernels
    parameters: dict[str, Any] = {}
    if isinstance(first.method, Mesa):
        assert first.method.train_length is not None and first.method.first_chunk is not None
        parameters["chunk_width"] = first.method.train_length - first.method.first_chunk
    times, answers = {}, {}
    for name, store_gib in (("without", 0), ("with", None)):
        lm = MesaHFLM(pretrained=model, method=method, batch_size=1, chunk_store_gib=store_gib, **parameters)
        if name == "without":
            lm.share_beyond = None
        start = time.perf_counter()
        answers[name] = lm._loglikelihood_tokens(requests, disable_tqdm=True)
        times[name] = time.perf_counter() - start
    difference = max(abs(a - b) for (a, _), (b, _) in zip(answers["with"], answers["without"], strict=True))
    found = {
        "model": model,
        "tokens": tokens,
        "questions": questions,
        "choices": choices,
        "method": method,
        **parameters,
        "without_s": round(times["without"], 2),
        "with_s": round(times["with"], 2),
        "speed_up": round(times["without"] / times["with"], 2),
        "largest_difference": difference,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    typer.run(compare_sharing)
