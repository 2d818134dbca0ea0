"""Log-likelihood of continuations and documents of any length; requests share what they can of the work."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from lm_eval.models.utils import Collator
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from mesa_lm.errors import UsageError
from mesa_lm.harness.batching import padded
from mesa_lm.harness.log_likelihood import SOFTMAX_BLOCK, Head, continuation_score, find_head, states_as_logits
from mesa_lm.harness.offsets import within
from mesa_lm.harness.shared_context import continuation_logits, with_shared_context
from mesa_lm.harness.untruncated import UncutHFLM

# Where the logits of hf's own call would be more than this, not all of them are held; a softmax takes as much again.
STOCK_LOGITS_BYTES = 2**31

# What lm-eval scores: the strings (None: not to be cached), the context's and the continuation's tokens.
ScoredRequest = tuple[tuple[str, str] | None, list[int], list[int]]


class ScoringHFLM(UncutHFLM):
    """lm-eval's `hf` for scores of long inputs: padding under a mask, logits for the scored positions alone.

    Attributes:
        share_beyond: Contexts of more tokens than this go through the model once for all of their continuations;
            None: never.
    """

    share_beyond: int | None = None

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score each continuation after its context, as `hf` does."""
        with self._progress("Scoring", len(requests), disable_tqdm):
            answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return each document's log-likelihood, scored as one window; with `max_length`, as windows of that length.

        A document of n tokens costs one forward pass of n tokens; logits and softmax go block by block. Documents that
        `max_length` splits count as truncated.
        """
        documents = [self.tok_encode(request.args[0]) for request in requests]
        size = self.batch_size
        if size == "auto":
            longest = max(documents, key=len, default=[])[: self.max_length] or [self.prefix_token_id]
            window: ScoredRequest = (None, [self.prefix_token_id], longest)
            size = self._largest_batch(lambda rows: self.scored_states([window] * rows), len(requests), len(longest))
        with self._fixed_batch_size(size), self._progress("Scoring documents", len(requests), disable_tqdm):
            # Several processes must make equal numbers of calls, which lm-eval's own loop sees to.
            rolling = self._rolling if self.world_size == 1 else super().loglikelihood_rolling
            answers: list[float] = rolling(requests)
        self._add_truncated(sum(len(document) > self.max_length for document in documents))
        return answers

    def span_loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, int]]:
        """Return for each text the log-likelihood of the tokens that lie wholly within some of its spans.

        A text is read in one forward pass; its first token, which nothing predicts, never counts.

        Args:
            requests: Their arguments are a text and its spans, pairs of characters from one to before the other.
            disable_tqdm: Do not show the progress.

        Returns:
            Log-likelihood in nats, and how many tokens it is of.

        Raises:
            UsageError: A text is longer than `max_length`, or the tokenizer does not tell which characters tokens are.
        """
        answers = []
        with self._progress("Scoring key tokens", len(requests), disable_tqdm):
            for text, spans in (request.args for request in requests):
                tokens, offsets = self.encoded_with_offsets(text)
                inside = [i for i in within(offsets, spans) if i > 0]
                if not inside:
                    answers.append((0.0, 0))
                    continue
                if len(tokens) > self.max_length + 1:
                    raise UsageError(
                        f"max_length={self.max_length} is shorter than a text with key tokens, of {len(tokens)}; "
                        "leave max_length out, or raise it"
                    )
                states, head = self.scored_states([(None, tokens[:1], tokens[1:])])
                with self._inference():
                    wanted = [tokens[i] for i in inside]
                    chosen = states[0][[i - 1 for i in inside]]
                    answers.append((continuation_score(chosen, wanted, self.softmax_dtype, head)[0], len(inside)))
                self.bar.advance()
        return answers

    def encoded_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return a text's tokens as they are scored, and from which character to before which each of them is.

        Raises:
            UsageError: The tokenizer does not tell.
        """
        tokens: list[int] = self.tok_encode(text)
        for special in (True, False) if self.tokenizer.is_fast else ():
            found = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
            if found["input_ids"] == tokens:
                return tokens, found["offset_mapping"]
        raise UsageError(
            f"the tokenizer {self.tokenizer.name_or_path!r} does not tell which characters its tokens are of, which "
            "key spans need; use a fast one"
        )

    def _rolling(self, requests: Sequence[Any]) -> list[float]:
        """Score documents a batch at a time, so that each is kept in the answer cache as soon as it is finished."""
        answers = []
        for start in range(0, len(requests), self.batch_size):
            texts = [request.args[0] for request in requests[start : start + self.batch_size]]
            windows = [self._windows(text) for text in texts]
            scores = iter(self._loglikelihood_tokens(list(chain.from_iterable(windows)), disable_tqdm=True))
            for text, own in zip(texts, windows, strict=True):
                answers.append(sum(next(scores)[0] for _ in own))
                self.cache_hook.add_partial("loglikelihood_rolling", (text,), answers[-1])
                self.bar.advance()
        return answers

    def _windows(self, text: str) -> list[ScoredRequest]:
        windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1)
        return [(None, *make_disjoint_window(window)) for window in windows]

    def _detect_batch_size(self, requests: Sequence[ScoredRequest], pos: int = 0) -> int:
        """The batch size for `batch_size=auto` from the request at `pos` on, the longest of the rest."""
        _, context, continuation = longest = requests[pos]
        return self._largest_batch(
            lambda rows: self.scored_states([longest] * rows), len(requests), len(context) + len(continuation)
        )

    def _loglikelihood_tokens(
        self, requests: list[ScoredRequest], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Score each continuation; requests share what they can of the work on their context.

        Requests that differ in the last token alone share one forward pass, those with the same long context its
        prefill.

        Args:
            requests: Strings, context tokens and continuation tokens.
            disable_tqdm: Not used: the caller shows the progress.
            override_bs: The batch size where `batch_size` is "auto"; None: find one.

        Returns:
            Log-likelihood and whether greedy decoding gives the continuation, in the order of the requests.

        Raises:
            UsageError: A continuation is longer than `max_length`, or empty.
        """
        if not all(continuation for _, _, continuation in requests):
            raise UsageError("a continuation to be scored has no tokens; the task has an empty choice or answer")
        longest = max((len(continuation) for _, _, continuation in requests), default=0)
        if longest > self.max_length:
            raise UsageError(
                f"max_length={self.max_length} is shorter than a continuation to be scored, of {longest} tokens; "
                "leave max_length out, or raise it"
            )
        answers = self._with_shared_context(requests)
        rest = [place for place in range(len(requests)) if place not in answers]
        alone = self._one_by_one([requests[place] for place in rest], override_bs)
        answers |= dict(zip(rest, alone, strict=True))
        self._add_truncated(sum(len(request[1]) + len(request[2]) > self.max_length + 1 for request in requests))
        return [answers[place] for place in range(len(requests))]

    def _with_shared_context(self, requests: Sequence[ScoredRequest]) -> dict[int, tuple[float, bool]]:
        """Answer the requests that have a long context in common, by index; none that runs out of memory."""
        # Several processes must make equal numbers of calls, and each is given requests of its own.
        if self.share_beyond is None or self.world_size > 1:
            return {}
        whole = [
            context
            if len(context) + len(continuation) <= self.max_length + 1 and len(continuation) <= SOFTMAX_BLOCK
            else []
            for _, context, continuation in requests
        ]
        answers = {}
        for places in with_shared_context(whole, self.share_beyond):
            context, continuations = whole[places[0]], [requests[place][2] for place in places]
            self.bar.show_tokens(len(context) + max(map(len, continuations)))
            try:
                with self._inference():
                    found = continuation_logits(self.model, context, continuations, self.device)
                    for place, continuation, logits in zip(places, continuations, found, strict=True):
                        answers[place] = continuation_score(logits, continuation, self.softmax_dtype)
                        self._keep(requests[place][0], answers[place])
            except RuntimeError as error:  # the cache of a context may not fit where a forward pass without it does
                if not should_reduce_batch_size(error):
                    raise
                clear_device_cache(garbage_collection=True)
        return answers

    def _keep(self, strings: tuple[str, str] | None, answer: tuple[float, bool]) -> None:
        """Put an answer into the answer cache; windows of a document are cached as a whole by the caller."""
        if strings is not None:
            self.cache_hook.add_partial("loglikelihood", strings, answer)
            self.bar.advance()

    def _one_by_one(self, requests: list[ScoredRequest], override_bs: int | None) -> list[tuple[float, bool]]:
        """Answer requests, each with a prefill of its own unless it differs from another in the last token alone."""
        order = Collator(
            requests,
            sort_fn=lambda request: (-len(request[1] + request[2]), tuple(request[1] + request[2])),
            group_by="contexts" if self.logits_cache else None,
            group_fn=lambda request: request[1] + request[2][:-1],
        )
        detect = self.batch_size == "auto" and not override_bs
        if detect:
            self.batch_sizes: dict[int, int] = {}
        batches = order.get_batched(
            n=(override_bs or 0) if self.batch_size == "auto" else self.batch_size,
            batch_fn=self._batch_scheduler if detect else None,
        )
        answers = []
        for batch in batches:
            self.bar.show_tokens(
                max(len(context) + len(continuation) for _, context, continuation in batch), len(batch)
            )
            batch_states, head = self.scored_states(batch)
            for (strings, context, continuation), states in zip(batch, batch_states, strict=True):
                sharing = order.get_cache(
                    req_str=strings, cxt_toks=context, cont_toks=continuation, logits=states.unsqueeze(0)
                )
                for shared_strings, tokens, shared in sharing:
                    with self._inference():
                        answer = continuation_score(shared[0, -len(tokens) :], tokens, self.softmax_dtype, head)
                    answers.append(answer)
                    self._keep(shared_strings, answer)
        in_order: list[tuple[float, bool]] = order.get_original(answers)
        return in_order

    def scored_states(self, batch: Sequence[ScoredRequest]) -> tuple[list[Tensor], Head | None]:
        """Return what predicts each request's continuation, views of what the model returned.

        Returns:
            (continuation length, vocabulary) logits and None; or, where the logits would be many, (continuation length,
            hidden) states and what makes logits of them.
        """
        # The last token of a continuation is predicted, never read.
        rows = [
            torch.tensor((context + continuation)[-(self.max_length + 1) :][:-1], device=self.device)
            for _, context, continuation in batch
        ]
        lengths = [len(continuation) for _, _, continuation in batch]
        positions = len(rows) * max(map(len, rows))
        logits_bytes = positions * self.model.config.get_text_config().vocab_size * self.model.dtype.itemsize
        if self.stock_calls and logits_bytes <= STOCK_LOGITS_BYTES:
            # hf's own call: without padding mask and with the logits of every position, since leaving some out
            # changes the last bits of the others. Padding on the right cannot change a causal model's result.
            inputs, _ = padded(rows, "right", 0)
            logits = self._model_call(inputs)
            # Prompt tuning puts virtual tokens in front.
            ends = [len(row) + logits.shape[1] - inputs.shape[1] for row in rows]
            return [row[end - length : end] for row, end, length in zip(logits, ends, lengths, strict=True)], None
        # On the left, because the scored positions of all rows then are the last ones.
        inputs, mask = padded(rows, "left", 0)
        head = self._head if len(rows) * max(lengths) > SOFTMAX_BLOCK else None
        with (
            self._inference(),
            states_as_logits(self.model.get_output_embeddings()) if head else nullcontext(),
        ):
            states = self.model(
                input_ids=inputs, attention_mask=mask, logits_to_keep=max(lengths), use_cache=False
            ).logits
        return [row[-length:] for row, length in zip(states, lengths, strict=True)], head

    @cached_property
    def _head(self) -> Head | None:
        with self._inference():
            return find_head(self.model, self.prefix_token_id)
