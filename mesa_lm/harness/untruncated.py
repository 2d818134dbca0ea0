"""lm-eval's `hf` without truncation, scoring inputs of any length; and the arithmetic that this needs."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import Collator, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

from mesa_lm.errors import UsageError
from mesa_lm.harness.batching import largest_batch, padded
from mesa_lm.harness.lm_eval_caches import interruption_reported
from mesa_lm.harness.log_likelihood import SOFTMAX_BLOCK, Head, continuation_score, find_head, states_as_logits
from mesa_lm.harness.shared_context import continuation_logits, with_shared_context

# Below lm-eval's logger, because that one alone has a handler in an lm_eval run.
logger = logging.getLogger("lm_eval.models.mesa_hf")

# What `max_length` answers where the user set none: lm-eval calculates with it, so it has to be a number.
UNLIMITED = 10**12
# Where the logits of hf's own call would be more than this, not all of them are held; a softmax takes as much again.
STOCK_LOGITS_BYTES = 2**31
# A CPU never reports that a batch is too large, so batch_size=auto keeps to this many tokens a batch there.
CPU_BATCH_TOKENS = 16384
# How often a long prompt's progress is drawn, in seconds.
REDRAW_S = 0.5

# What lm-eval scores: the strings (None: not to be cached), the context's and the continuation's tokens.
Request = tuple[tuple[str, str] | None, list[int], list[int]]


class UncutHFLM(HFLM):  # type: ignore[misc]  # lm-eval publishes no types
    """lm-eval's `hf` for long inputs: no truncation, padding under a mask, logits for the scored positions alone.

    Attributes:
        stock_calls: Make `hf`'s own calls of the model, for results equal to its to the last bit.
        share_beyond: Contexts of more tokens than this go through the model once for all of their continuations;
            None: never.
        truncated_samples: Samples that did not reach the model whole because the user set `max_length`.
    """

    stock_calls = False
    share_beyond: int | None = None
    batch_size_per_gpu: int | str

    def __init__(self, **kwargs: Any) -> None:
        """Load a model.

        Args:
            **kwargs: Everything that `hf` accepts.
        """
        self.truncated_samples = 0
        self._cut = 0
        self._bar = tqdm(disable=True)
        self._tokens = self._tokens_run = 0
        self._drawn = 0.0
        super().__init__(**kwargs)

    @property
    def max_length(self) -> int:
        """The most tokens that a request may have; unlimited where the user set nothing."""
        return self._max_length or UNLIMITED

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Encode and pad prompts, each by itself: whether one starts with BOS must not decide for the others.

        Args:
            strings: The prompts.
            padding_side: "left" or "right".
            left_truncate_len: Tokens to keep of each prompt, the last ones; None: all.
            truncation: Let the tokenizer cut prompts at its own length.

        Returns:
            Token ids and attention mask, both (batch, length).
        """
        encode = super().tok_batch_encode
        rows = []
        for string in strings:
            whole = encode([string])[0][0]
            row = encode([string], truncation=True)[0][0] if truncation else whole
            row = row[-left_truncate_len:] if left_truncate_len else row
            self._cut += len(row) < len(whole)
            rows.append(row)
        return padded(rows, padding_side, self.tokenizer.pad_token_id)

    def _add_truncated(self, count: int) -> None:
        """Add up over all processes how many samples `max_length` cut, and warn once."""
        count = int(self.all_gather(torch.tensor([count], device=self.device)).sum())
        if count:
            logger.warning("%d samples did not reach the model whole: max_length=%d", count, self.max_length)
        self.truncated_samples += count

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate for each request; see `HFLM.generate_until`."""

        def length(request: Any) -> int:
            context, options = request.args
            return len(self.tok_encode(context)) + int(normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"])

        def generate(rows: int) -> None:
            context = torch.ones((rows, longest), dtype=torch.long, device=self.device)
            self._model_generate(
                context=context, attention_mask=torch.ones_like(context), stop=[], max_length=longest + 1
            )

        self._cut = 0
        size = self.batch_size
        if size == "auto":
            longest = min(self.max_length, max(map(length, requests), default=1))
            size = self._largest_batch(generate, len(requests), longest)
        with self._fixed_batch_size(size), self._progress("Generating", len(requests), disable_tqdm):
            answers: list[str] = super().generate_until(requests, disable_tqdm=True)
        self._add_truncated(self._cut)
        return answers

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score each continuation after its context; see `HFLM.loglikelihood`."""
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
            window: Request = (None, [self.prefix_token_id], longest)
            size = self._largest_batch(lambda rows: self._scored_states([window] * rows), len(requests), len(longest))
        with self._fixed_batch_size(size), self._progress("Scoring documents", len(requests), disable_tqdm):
            # Several processes must make equal numbers of calls, which lm-eval's own loop sees to.
            rolling = self._rolling if self.world_size == 1 else super().loglikelihood_rolling
            answers: list[float] = rolling(requests)
        self._add_truncated(sum(len(document) > self.max_length for document in documents))
        return answers

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
                self._bar.update(1)
        return answers

    def _windows(self, text: str) -> list[Request]:
        windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1)
        return [(None, *make_disjoint_window(window)) for window in windows]

    @contextmanager
    def _progress(self, what: str, count: int, disable: bool) -> Iterator[None]:
        """Show a bar with the length of what is being computed, and say at Ctrl-C what is kept."""
        hidden = disable or self.rank != 0
        with tqdm(total=count, desc=what, disable=hidden) as bar, interruption_reported(self.cache_hook.dbdict):
            self._bar = bar
            yield

    def _show_tokens(self, length: int, rows: int = 1) -> None:
        """Show the length of what is run next."""
        self._tokens, self._tokens_run = length * rows, 0
        self._bar.set_postfix_str(f"tokens={length}")

    def _note_pass(self, tokens: int) -> None:
        """Show how far a long prompt is; decoded tokens are not counted."""
        if self._tokens_run + tokens <= self._tokens:
            self._tokens_run += tokens
            due = time.monotonic() - self._drawn > REDRAW_S
            self._drawn = time.monotonic() if due else self._drawn
            self._bar.set_postfix_str(f"tokens={self._tokens_run}/{self._tokens}", refresh=due)

    @contextmanager
    def _fixed_batch_size(self, size: int) -> Iterator[None]:
        """Put a number in the place of "auto", for which HFLM would try batches of `max_length`."""
        given = self.batch_size_per_gpu
        try:
            self.batch_size_per_gpu = size
            yield
        finally:
            self.batch_size_per_gpu = given

    def _detect_batch_size(self, requests: Sequence[Request], pos: int = 0) -> int:
        """The batch size for `batch_size=auto` from the request at `pos` on, the longest of the rest."""
        _, context, continuation = longest = requests[pos]
        return self._largest_batch(
            lambda rows: self._scored_states([longest] * rows), len(requests), len(context) + len(continuation)
        )

    def _largest_batch(self, attempt: Callable[[int], object], count: int, length: int) -> int:
        """Find the largest batch that fits into memory, halving; the smallest of all processes.

        Args:
            attempt: Runs a batch of so many rows.
            count: Requests there are.
            length: Tokens of the longest.
        """
        limit = max(1, min(self.max_batch_size, count))
        if self.device.type == "cpu":
            limit = max(1, min(limit, CPU_BATCH_TOKENS // length))
        size = largest_batch(attempt, limit)
        return int(self.all_gather(torch.tensor([size], device=self.device)).min())

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
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

    def _with_shared_context(self, requests: Sequence[Request]) -> dict[int, tuple[float, bool]]:
        """Answer the requests that have a long context in common, by their place; none that runs out of memory."""
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
            self._show_tokens(len(context) + max(map(len, continuations)))
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
            self._bar.update(1)

    def _one_by_one(self, requests: list[Request], override_bs: int | None) -> list[tuple[float, bool]]:
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
            self._show_tokens(max(len(context) + len(continuation) for _, context, continuation in batch), len(batch))
            batch_states, head = self._scored_states(batch)
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

    def _scored_states(self, batch: Sequence[Request]) -> tuple[list[Tensor], Head | None]:
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
        if self.stock_calls and positions * self._logits_bytes() <= STOCK_LOGITS_BYTES:
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

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """No gradients, and the precision that the user asked for."""
        dtype = self.mixed_precision_dtype
        with torch.no_grad(), torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            yield

    def _logits_bytes(self) -> int:
        """Bytes of the logits of one position."""
        size: int = self.model.config.get_text_config().vocab_size * self.model.dtype.itemsize
        return size

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        if not self.stock_calls:
            # Without the tokenizer's end token among them, a row would write on after it as long as others do.
            configured = self.model.generation_config.eos_token_id
            ends = configured if isinstance(configured, list) else [configured]
            ends = sorted({end for end in [*ends, self.eot_token_id] if end is not None})
            generation_kwargs.setdefault("eos_token_id", ends)
        self._show_tokens(context.shape[1], len(context))
        generated: Tensor = super()._model_generate(context, max_length, stop, **generation_kwargs)
        self._bar.update(len(context))
        return generated
