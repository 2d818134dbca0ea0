"""The task long_ppl: which stretches of a sample are scored, and what becomes of their scores.

A stretch is scored as the difference of two log-likelihoods of lm-eval's kind, each of "the rest of the input given its
beginning". So any model of lm-eval can run the task; `mesa-hf` computes all of them, which are of one input, at once.
"""

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean, perplexity
from lm_eval.api.task import ConfigurableTask

from mesa_lm.errors import UsageError

# exp() of more cannot be squared in a float, which standard errors need; text without spaces gets there.
MAX_WORD_NLL = 300.0
# By which, of its amount, the log-likelihood of a text may differ between two requests.
ROUNDING = 1e-3
# What mesa-hf has beside lm-eval's kinds of requests: the log-likelihood of the tokens within some spans of a text.
SPANS = "span_loglikelihood"


class LongPpl(ConfigurableTask):
    """Perplexity of long inputs: whole, by position, and of a tail given what comes before it."""

    def __init__(self, config: dict[str, Any] | None = None, **options: Any) -> None:
        """Build the samples, and note in the configuration that is saved with the results where they come from.

        Args:
            config: The task's YAML.
            **options: As for lm-eval's tasks.
        """
        settings = {name: value for name, value in (config or {}).items() if name != "class"}
        super().__init__(config=settings, **options)
        first = self.dataset["test"][0]
        names = ["source", "source_sha256", "documents_dropped", "overlapping", "edges"]
        self.request_types: tuple[str, ...] = ("loglikelihood",)
        if "key_spans" in first:
            names += ["evaluator", "key_spans_sha256"]
            self.request_types += (SPANS,)
        noted = {name: first[name] for name in names}
        self.config.metadata = {**(self.config.metadata or {}), **noted}

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        """Return the requests of a sample: the rest of the input after each start, the tail, and the key spans.

        Args:
            doc: The sample.
            ctx: Not used.
            **kwargs: What lm-eval notes about the requests, and its settings for chats, which do not apply to text.
        """
        pairs = [(doc["text"][:start], doc["text"][start:]) for start in doc["starts"]]
        pairs.append((doc["context"], doc["tail"]))
        requests = [("loglikelihood", pair) for pair in pairs]
        if SPANS in self.request_types:
            requests.append((SPANS, (doc["text"], doc["key_spans"])))
        return [
            Instance(request_type=kind, doc=doc, arguments=given, idx=i, metadata=kwargs["metadata"])
            for i, (kind, given) in enumerate(requests)
        ]

    def aggregation(self) -> dict[str, Any]:
        """Return how samples are summed up: the stretches, whose number depends on the length, by their mean."""
        of_keys = {"key_ppl": perplexity} if SPANS in self.request_types else {}
        return {**super().aggregation(), **dict.fromkeys(self._stretches(), mean), **of_keys}

    def higher_is_better(self) -> dict[str, bool]:
        """Return the direction of every measure: less is better."""
        of_keys = ["key_ppl"] if SPANS in self.request_types else []
        return {**super().higher_is_better(), **dict.fromkeys([*self._stretches(), *of_keys], False)}

    def _stretches(self) -> list[str]:
        return _names(self.config.metadata["edges"])


def measures(doc: dict[str, Any], results: Sequence[tuple[float, int]]) -> dict[str, float]:
    """Return the measures of a sample; the README defines them.

    Args:
        doc: The sample.
        results: Log-likelihood in nats and greediness of each request; of the key spans, the number of their tokens.

    Raises:
        UsageError: The log-likelihoods contradict each other.
    """
    sums = list(results)
    of_keys, key_tokens = sums.pop() if "key_spans" in doc else (0.0, 0)
    *rests, tail = [-log_likelihood for log_likelihood, _ in sums]
    scored = doc["text"][doc["starts"][0] :]
    counts = doc["counts"]
    found = {
        "nll": rests[0] / (counts[-1] - counts[0]),
        "tail_nll": tail / doc["tail_tokens"],
        "bits_per_byte": rests[0] / len(scored.encode()) / math.log(2),
        # What the aggregation `perplexity` takes: the mean log-likelihood of a word.
        "word_perplexity": -min(rests[0] / max(1, len(re.findall(r"\S+", scored))), MAX_WORD_NLL),
    }
    if key_tokens:
        found["key_ppl"] = of_keys / key_tokens  # for `perplexity`, too
    stretches = zip(_names(doc["edges"]), pairwise([*rests, 0.0]), pairwise(counts), strict=True)
    for name, (rest, later), (start, end) in stretches:
        if rest - later < -ROUNDING * max(1.0, later):
            raise UsageError(
                f"long_ppl: {name} is negative, {(rest - later) / (end - start):.3f}: the model finds a part of an "
                "input less likely than the whole. lm-eval's `hf` confuses requests of one text; "
                "give it logits_cache=False"
            )
        found[name] = (rest - later) / (end - start)
    return found


def _names(edges: Sequence[int]) -> list[str]:
    return [f"nll_{start}_{end}" for start, end in pairwise(edges)]
