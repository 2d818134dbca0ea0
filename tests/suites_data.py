"""Small local data with the schema of what lm-eval's long-context suites download."""

from typing import Any

from datasets import Dataset, DatasetDict, Features
from nltk.tokenize.punkt import PunktSentenceTokenizer
from rouge_score.rouge_scorer import RougeScorer

# About 1,400 tokens of the demo model, which was trained on 512.
FILLER = "\n".join(f"Section {i}. The grass is green. The sky is blue. There and back again." for i in range(47))
ESSAYS = " ".join(f"Essay {i} is about startups. Nobody knew it would be so long." for i in range(997))

LONGBENCH = {
    "qasper": ("What is green?", "The grass"),
    "hotpotqa": ("What is blue?", "the sky"),
    "samsum": ("Dialogue: A: Hi. B: Hi.\nSummary:", "They greet."),
    "passage_retrieval_en": ("It is about grass.", "Paragraph 7"),
    "repobench-p": ("import sky\n", "sky.blue()"),
}
INFINITEBENCH = {
    "passkey": ("What is the pass key?", "71432"),
    "kv_retrieval": ('Key: "a5"\nThe value associated with the specified key is:', "b7"),
    "number_string": ("What is the sequence of digits?", "7143"),
    "code_run": ("Please give me the exact number of the return value of func_1(5).", "7"),
    "code_debug": ("Which function has an error?", "grow"),
    "math_find": ("The largest number of the list is:", "97"),
    "longdialogue_qa_en": ("", "MARY"),
    "longbook_qa_en": ("What is green?", "grass"),
    "longbook_sum_en": ("", "Grass is green."),
    "longbook_choice_en": ("Who shines?", "grow"),
    "longbook_qa_chn": ("草是什么颜色", "绿色"),
}
# Input (as SCROLLS has it: the question first) and answer.
SCROLLS = {
    "gov_report": (FILLER, "Grass is green."),
    "summ_screen_fd": (FILLER, "Grass is green."),
    "qmsum": (f"What was decided?\n\n{FILLER}", "Nothing at all."),
    "qasper": (f"Is grass green?\n\n{FILLER}", "Yes"),
    "narrative_qa": (f"What is green?\n\n{FILLER}", "Grass"),
    "contract_nli": (f"Grass is green.\n\n{FILLER}", "Entailment"),
    "quality": (f"What is green?\n\n (A) sky\n (B) grass\n (C) sun\n (D) sea\n\n{FILLER}", "grass"),
}


def load_dataset(path: str, name: str | None = None, split: str | None = None, **options: Any) -> Any:
    """Stand in for `datasets.load_dataset`: two rows of the data set asked for."""
    if path == "baber/paul_graham_essays":
        return Dataset.from_dict({"text": [ESSAYS]})
    if path == "Xnhyacinth/LongBench":
        question, answer = LONGBENCH[name]
        row = {"context": FILLER, "question": question, "answers": [answer], "all_classes": None, "length": 997}
        return DatasetDict(test=Dataset.from_list([row] * 2))
    if path == "RMT-team/babilong-1k-samples":
        return babilong(name, split)
    if path == "xinrongzhang2022/InfiniteBench":
        return DatasetDict({task: infinitebench(task, options["features"]) for task in INFINITEBENCH})
    if path == "json":
        return scrolls(options["data_files"])
    raise AssertionError(f"no local data for {path!r}")


def babilong(name: str | None, split: str | None) -> Any:
    """Return a length (`4k`) of BABILong: one split if it is named, else the first twenty."""
    row = {"input": FILLER * int((name or "1k").removesuffix("k")), "question": "Where is Mary? ", "target": "garden"}
    rows = Dataset.from_list([row] * 2)
    return rows if split else DatasetDict({f"qa{i}": rows for i in range(1, 21)})


def infinitebench(split: str, features: Features) -> Dataset:
    """Return one task of InfiniteBench."""
    question, answer = INFINITEBENCH[split]
    options = ["shine", "grow", "flow", "burn"] if split in ("code_debug", "longbook_choice_en") else []
    row = {"id": 5, "context": FILLER, "input": question, "answer": [answer], "options": options}
    return Dataset.from_list([row] * 2, features=features)


def scrolls(files: dict[str, str]) -> DatasetDict:
    """Return one task of SCROLLS; the second answer to the first document stands in a row of its own."""
    (name,) = {url.rpartition("/")[2].removesuffix(".zip") for url in files.values()}
    text, answer = SCROLLS[name]
    rows = [{"id": key, "pid": f"{key}_0", "input": text, "output": answer} for key in ("a", "a", "b")]
    return DatasetDict({split: Dataset.from_list(rows) for split in files})


def sentences(text: str) -> list[str]:
    """Split text as nltk does, without the abbreviations that it downloads."""
    return list(PunktSentenceTokenizer().tokenize(text))


class ScrollsMetric:
    """Stands in for the metric script that SCROLLS downloads: the best of the references, in percent."""

    def compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        """Return the means over samples under the script's names; `f1` is approximated by ROUGE-1."""
        scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
        scores: dict[str, float] = {}
        for kind in ("rouge1", "rouge2", "rougeL"):
            best = [
                max(scorer.score(reference, answer)[kind].fmeasure for reference in texts)
                for answer, texts in zip(predictions, references, strict=True)
            ]
            scores[f"rouge/{kind}"] = 100 * sum(best) / len(best)
        return scores | {"f1": scores["rouge/rouge1"]}
