"""NoLiMa's base score and effective length.

Source: Modarressi et al. 2025, *NoLiMa: Long-Context Evaluation Beyond Literal Matching*, section 4.3.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

BASE_LENGTHS = (250, 500, 1000)  # tokens
KEPT = 0.85  # share of the base score above which a length counts


def base_score_and_effective_length(samples: Mapping[int, Iterable[Mapping[str, Any]]]) -> dict[str, float]:
    """Sum up the lengths of a run.

    Args:
        samples: By length in tokens, as lm-eval logs them.

    Returns:
        `base_score`: of each pair of needle and question the highest mean score at 250, 500 and 1000 tokens, averaged
        over the pairs. `effective_length`: the longest length whose score exceeds 85% of it, tokens; 0 where none does.
        Nothing where one of the three lengths was not run.
    """
    scores = {length: [(doc["doc"]["needle"], doc["acc"]) for doc in docs] for length, docs in samples.items()}
    if not set(BASE_LENGTHS) <= scores.keys():
        return {}
    best: dict[str, float] = defaultdict(float)
    for length in BASE_LENGTHS:
        of_pair = defaultdict(list)
        for needle, acc in scores[length]:
            of_pair[needle].append(acc)
        for needle, found in of_pair.items():
            best[needle] = max(best[needle], fmean(found))
    base_score = fmean(best.values())
    kept = [length for length, found in scores.items() if fmean(acc for _, acc in found) > KEPT * base_score]
    return {"base_score": base_score, "effective_length": max(kept, default=0)}
