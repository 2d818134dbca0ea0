"""Read data of NoLiMa's form: a set of needles with questions, and haystacks; from a folder or the Hugging Face hub."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import snapshot_download

from mesa_lm.errors import UsageError

HUB = "amodaresi/NoLiMa"
NEEDLES, HAYSTACKS = "needlesets/{name}.json", "haystack/rand_shuffle"
# The published template, which a needle set may replace.
TEMPLATE_FIELDS = ("{haystack}", "{question}")
CHARACTER = "{CHAR}"


class Needle(NamedTuple):
    """A question and the needle that answers it: NoLiMa's pair.

    Attributes:
        name: Of set, test and kind of question.
        text: The needle, in which `{CHAR}` stands for a name.
        question: The question; it may hold `{CHAR}`, too.
        template: The prompt, with `{haystack}` and `{question}`.
        characters: Names of which one is put into the needle, and is the answer.
    """

    name: str
    text: str
    question: str
    template: str
    characters: tuple[str, ...]


class NeedleSet(NamedTuple):
    """Needles, and texts to hide them in, by name."""

    needles: tuple[Needle, ...]
    haystacks: tuple[tuple[str, str], ...]


def read_needle_set(data: str, name: str) -> NeedleSet:
    """Read a needle set and all haystacks.

    Args:
        data: A folder, or a data set on the hub.
        name: Of the needle set.

    Raises:
        UsageError: There is none, or it is of another form.
    """
    folder = Path(data).expanduser()
    if not folder.is_dir():
        folder = _downloaded(data, name)
    file, texts = folder / NEEDLES.format(name=name), sorted((folder / HAYSTACKS).glob("*.txt"))
    if not file.is_file() or not texts:
        raise UsageError(
            f"nolima_long: data {data!r} must hold {NEEDLES.format(name=name)} and {HAYSTACKS}/*.txt, as {HUB} does"
        )
    try:
        experiments = json.loads(file.read_text(encoding="utf-8"))
        needles = tuple(needle for experiment in experiments for needle in _needles(experiment))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise UsageError(f"nolima_long: {str(file)!r} is no needle set of NoLiMa's form: {reason}") from None
    if not needles:
        raise UsageError(f"nolima_long: {str(file)!r} holds no needle")
    return NeedleSet(needles, tuple((path.stem, path.read_text(encoding="utf-8")) for path in texts))


def _needles(experiment: dict[str, Any]) -> list[Needle]:
    """Return the pairs of one entry of a set: each of its questions with each of its tests.

    Raises:
        ValueError: It has what is not supported.
    """
    if experiment.get("distractors"):
        raise ValueError("distractors are not supported")
    characters = tuple(experiment["character_set"])
    if CHARACTER not in experiment["needle"] or not all(isinstance(name, str) and name for name in characters):
        raise ValueError(f"a needle must name {CHARACTER}, one of a character_set")
    template = experiment["task_template"]
    if not all(field in template for field in TEMPLATE_FIELDS) or experiment.get("system_prompt"):
        raise ValueError(f"a task_template must hold {' and '.join(TEMPLATE_FIELDS)}, and there is no system prompt")
    found = []
    for kind, question in experiment["questions"].items():
        for test, given in experiment["tests"].items():
            texts = experiment["needle"], question
            for number, argument in enumerate(given["input_args"], start=1):
                texts = texts[0].replace(f"{{{number}}}", argument), texts[1].replace(f"{{{number}}}", argument)
            found.append(Needle(f"{experiment['id']}_{test}_{kind}", *texts, template, characters))
    return found


@cache
def _downloaded(data: str, name: str) -> Path:
    if data.count("/") != 1 or data.startswith((".", "/", "~")):
        raise UsageError(f"nolima_long: there is no folder {data!r}, which data names (or owner/name on the hub)")
    patterns = [NEEDLES.format(name=name), f"{HAYSTACKS}/*.txt"]
    try:
        return Path(snapshot_download(data, repo_type="dataset", allow_patterns=patterns))
    except Exception as error:  # the hub and the network: dozens of classes, all of them a source out of reach
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"nolima_long: cannot load data {data!r}: {reason}") from None
