"""Log-likelihood without the logits of a whole input: last hidden states, and the output layer block by block."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

# Positions whose logits and log-probabilities over the vocabulary exist at the same time.
SOFTMAX_BLOCK = 1024

Head = Callable[[Tensor], Tensor]


def continuation_score(
    states: Tensor, continuation: Sequence[int], softmax_dtype: torch.dtype | None = None, head: Head | None = None
) -> tuple[float, bool]:
    """Return a continuation's log-likelihood and whether each of its tokens is the most likely one.

    Args:
        states: (length, vocabulary) logits that predict the continuation, or with `head` (length, hidden) states.
        continuation: Its tokens.
        softmax_dtype: The dtype of the softmax; None: that of the logits.
        head: From states to logits; None: `states` are logits.
    """
    log_probs, greedy = token_log_probs(states, continuation, softmax_dtype, head)
    return float(log_probs.sum()), greedy


def token_log_probs(
    states: Tensor, continuation: Sequence[int], softmax_dtype: torch.dtype | None = None, head: Head | None = None
) -> tuple[Tensor, bool]:
    """Return the log-likelihood of each token of a continuation, (length,), and whether each is the most likely one.

    Args:
        states: As for `continuation_score`, and so are the others.
        continuation: Its tokens.
        softmax_dtype: The dtype of the softmax.
        head: From states to logits.
    """
    target = torch.tensor(continuation, device=states.device)
    picked, greedy = [], []
    for block, wanted in zip(states.split(SOFTMAX_BLOCK), target.split(SOFTMAX_BLOCK), strict=True):
        logits = head(block).to(wanted.device) if head else block
        log_probs = F.log_softmax(logits, dim=-1, dtype=softmax_dtype)
        picked.append(log_probs.gather(1, wanted.unsqueeze(1)).squeeze(1))
        greedy.append(bool((log_probs.argmax(dim=-1) == wanted).all()))
    return torch.cat(picked), all(greedy)


@contextmanager
def states_as_logits(layer: torch.nn.Module) -> Iterator[None]:
    """Let a model return its last hidden states where it returns logits.

    Args:
        layer: Its output layer; passes its input through for the duration.
    """
    own = layer.__dict__.get("forward")  # accelerate puts one on the instance
    try:
        layer.forward = lambda states: states
        yield
    finally:
        del layer.forward
        if own is not None:
            layer.forward = own


def find_head(model: torch.nn.Module, token: int) -> Head | None:
    """Return what turns a model's last hidden states into its logits, if that is its output layer alone.

    Some families scale or cap what the layer returns. Whether this one does is tried on two tokens.

    Args:
        model: A causal language model of transformers.
        token: Any token.

    Returns:
        From states, as `states_as_logits` makes the model return them, to logits; None: it cannot be told.
    """
    layer = model.get_output_embeddings()  # type: ignore[operator]
    weight = getattr(layer, "weight", None)
    if weight is None:
        return None

    def head(states: Tensor) -> Tensor:
        # Quantised weights are no floating point numbers and their layer takes any.
        logits: Tensor = layer(states.to(weight.dtype) if weight.is_floating_point() else states)
        return logits

    inputs = torch.full((1, 2), token, device=next(model.parameters()).device)
    with torch.no_grad():
        logits = model(input_ids=inputs, use_cache=False).logits
        with states_as_logits(layer):
            states = model(input_ids=inputs, use_cache=False).logits
        if states.shape[-1] != model.config.get_text_config().hidden_size:  # type: ignore[union-attr, operator]
            return None
        same = torch.equal(head(states).to(logits), logits)
    return head if same else None
