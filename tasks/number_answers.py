"""Score answers that are numbers."""

import re


def numbers_in(answer: str) -> list[str]:
    """Return the runs of digits in an answer, without leading zeros; "1,234" is two numbers."""
    return [number.lstrip("0") for number in re.findall(r"\d+", answer)]


def number_scores(answer: str, value: int) -> dict[str, float]:
    """Compare an answer with the one number that is right.

    Args:
        answer: The generated text.
        value: The number, at least 1.

    Returns:
        `acc`: the first number in the text is the right one. `exact_match`: the text, without surrounding space and
        without a final full stop, is the right number.
    """
    return {
        "acc": float(numbers_in(answer)[:1] == [str(value)]),
        "exact_match": float(answer.strip().removesuffix(".") == str(value)),
    }
