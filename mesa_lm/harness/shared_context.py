"""Score several continuations of one long context with a single prefill of it, as of a multiple-choice question."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


def with_shared_context(contexts: Sequence[Sequence[int]], longer_than: int) -> list[list[int]]:
    """Return the places of requests that have their context in common.

    Args:
        contexts: Tokens of each request's context.
        longer_than: Tokens up to which a context is not shared.

    Returns:
        Places by context, at least two each, the longest context first.
    """
    places: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, context in enumerate(contexts):
        if len(context) > longer_than:
            places[tuple(context)].append(place)
    return [found for _, found in sorted(places.items(), key=lambda item: -len(item[0])) if len(found) > 1]


def continuation_logits(
    model: nn.Module, context: Sequence[int], continuations: Sequence[Sequence[int]], device: torch.device
) -> Iterator[Tensor]:
    """Yield what predicts each continuation of a context.

    The context goes through the model once, but for its last token, which predicts a continuation's first.

    Args:
        model: Its cache can be cropped, and nothing in it depends on what follows.
        context: At least two tokens.
        continuations: Tokens; the last of each is predicted, never read.
        device: Where the model takes its input.

    Yields:
        (continuation length, vocabulary) logits.
    """
    start = torch.tensor([context[:-1]], device=device)
    cache = model(input_ids=start, use_cache=True, logits_to_keep=1).past_key_values
    read: list[int] = []
    for continuation in continuations:
        if read != [context[-1], *continuation[:-1]]:
            read = [context[-1], *continuation[:-1]]
            row = torch.tensor([read], device=device)
            logits = model(input_ids=row, past_key_values=cache, use_cache=True, logits_to_keep=len(read)).logits[0]
            cache.crop(-len(read))
        yield logits
