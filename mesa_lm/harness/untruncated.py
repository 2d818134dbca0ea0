"""lm-eval's `hf` without truncation: prompts of any length, batches that fit, generation."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor

from mesa_lm.harness.batching import largest_batch, padded
from mesa_lm.harness.gangs import GangHFLM
from mesa_lm.harness.left_out_logs import left_out
from mesa_lm.harness.lm_eval_caches import interruption_reported
from mesa_lm.harness.progress_bar import RequestBar

# Below lm-eval's logger, because that one alone has a handler in an lm_eval run.
logger = logging.getLogger("lm_eval.models.mesa_hf")

# What `max_length` answers where the user set none: lm-eval calculates with it, so it has to be a number.
UNLIMITED = 10**12
# A CPU never reports that a batch is too large, so batch_size=auto keeps to this many tokens a batch there.
CPU_BATCH_TOKENS = 16384


class UncutHFLM(GangHFLM):
    """lm-eval's `hf` for inputs of any length.

    Attributes:
        bar: Shows the progress of requests.
        stock_calls: Make `hf`'s own calls of the model, for results equal to its to the last bit.
        truncated_samples: Samples that did not reach the model whole because the user set `max_length`.
    """

    stock_calls = False
    batch_size_per_gpu: int | str

    def __init__(self, **kwargs: Any) -> None:
        """Load a model.

        Args:
            **kwargs: Everything that `hf` accepts.
        """
        self.truncated_samples = 0
        self._cut = 0
        self._prompts: dict[str, Tensor] = {}
        self.bar = RequestBar()
        super().__init__(**kwargs)

    @property
    def max_length(self) -> int:
        """The most tokens that a request may have; unlimited where the user set nothing."""
        return self._max_length or UNLIMITED

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        """Encode a text as `hf` does; prompts that are generated from have been encoded already."""
        known = self._prompts.get(string)
        encoded: list[int] = super().tok_encode(string, *args, **kwargs) if known is None else known.tolist()
        return encoded

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
            known = self._prompts.get(string)
            whole = encode([string])[0][0] if known is None else known.long()
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
        """Generate for each request, as `hf` does."""

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
        with self._encoded_once([request.args[0] for request in requests]):
            if size == "auto":
                longest = min(self.max_length, max(map(length, requests), default=1))
                size = self._largest_batch(generate, len(requests), longest)
            with self._fixed_batch_size(size), self._progress("Generating", len(requests), disable_tqdm):
                answers: list[str] = super().generate_until(requests, disable_tqdm=True)
        self._add_truncated(self._cut)
        return answers

    @contextmanager
    def _encoded_once(self, prompts: Sequence[str]) -> Iterator[None]:
        """Encode prompts for the duration; `hf` does it to sort them and once more, seconds for a million tokens."""
        encode = super().tok_batch_encode
        try:
            if not self.stock_calls:  # those are `hf`'s own in everything
                self._prompts = {prompt: encode([prompt])[0][0].int() for prompt in dict.fromkeys(prompts)}
            yield
        finally:
            self._prompts = {}

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        if not self.stock_calls:
            # Without the tokenizer's end token among them, a row would write on after it as long as others do.
            configured = self.model.generation_config.eos_token_id
            ends = configured if isinstance(configured, list) else [configured]
            ends = sorted({end for end in [*ends, self.eot_token_id] if end is not None})
            generation_kwargs.setdefault("eos_token_id", ends)
        self.bar.show_tokens(context.shape[1], len(context))
        # The inputs are meant to be longer than the model's config says.
        with left_out("transformers.generation.stopping_criteria", "friendly reminder"):
            generated: Tensor = super()._model_generate(context, max_length, stop, **generation_kwargs)
        self.bar.advance(len(context))
        return generated

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """No gradients, and the precision that the user asked for."""
        dtype = self.mixed_precision_dtype
        with torch.no_grad(), torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            yield

    @contextmanager
    def _progress(self, what: str, count: int, disable: bool) -> Iterator[None]:
        """Show the bar, in one of several processes, and say at Ctrl-C what is kept."""
        shown = self.bar.over(what, count, hidden=disable or self.rank != 0 or not self.writes)
        with shown, interruption_reported(self.cache_hook.dbdict):
            yield

    @contextmanager
    def _fixed_batch_size(self, size: int) -> Iterator[None]:
        """Put a number in the place of "auto", for which HFLM would try batches of `max_length`."""
        given = self.batch_size_per_gpu
        try:
            self.batch_size_per_gpu = size
            yield
        finally:
            self.batch_size_per_gpu = given

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
