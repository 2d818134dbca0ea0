"""Whatever is typed after `lm_eval --model mesa-hf` succeeds at the length asked for, or is refused in one line."""

import json
from typing import Any

import lm_eval.evaluator
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

WORDS = st.sampled_from(
    [
        "",
        "banana",
        "0",
        "1",
        "-5",
        "1.5",
        "1e99",
        "nan",
        "true",
        "None",
        "auto",
        "auto:0",
        "{",
        "[1]",
        "a=b",
        "{}",
        "cuda:9",
    ]
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-2, 700), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
NAMES = st.one_of(
    st.sampled_from(
        ["num_samples", "depths", "prompt", "seed", "lengths", "tokenizer", "method", "pretrained", "num_sample"]
    ),
    st.text(max_size=6),
)
METADATA = st.one_of(
    st.dictionaries(NAMES, VALUES, max_size=3).map(json.dumps),
    st.tuples(NAMES, WORDS).map("=".join),
    st.text(max_size=8),
)
LENGTHS = st.one_of(
    st.integers(-3, 3000).map(str),
    st.sampled_from(["1k", "1K", "1.5k", "0", "k", "9" * 15, "9" * 30, "x", "²", "*", "["]),
)
TASKS = st.one_of(
    LENGTHS.map("passkey_long_{}".format),
    st.lists(LENGTHS.map("passkey_long_{}".format), min_size=2, max_size=3).map(",".join),
    st.sampled_from(["passkey_long", "passkey_lon", "", ",", "passkey_long,passkey_long_512", "no/such.yaml"]),
)
NAMED = st.tuples(
    st.sampled_from(["method", "max_length", "dtype", "window", "batch_size", "add_bos_token", "tokenizer", "banana"]),
    WORDS,
).map("=".join)
OPTIONS = st.one_of(
    st.tuples(st.just("--metadata"), METADATA),
    st.tuples(st.just("--model_args"), st.one_of(NAMED, WORDS)),
    st.tuples(
        st.just("--gen_kwargs"),
        st.one_of(st.tuples(st.sampled_from(["top_k", "max_gen_toks", "x"]), WORDS).map("=".join), WORDS),
    ),
    st.tuples(
        st.sampled_from(
            [
                *("--device", "--batch_size", "--max_batch_size", "--limit", "--num_fewshot", "--seed", "--samples"),
                *(
                    "--output_path",
                    "--use_cache",
                    "--include_path",
                    "--verbosity",
                    "--config",
                    "--banana",
                    "--apply_chat_template",
                ),
            ]
        ),
        WORDS,
    ),
)


class CountedOnly:
    """In place of `simple_evaluate`'s last step: the samples that would be sent."""

    def __init__(self) -> None:
        self.samples: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, lm: Any, task_dict: dict[str, Any], **options: Any) -> None:
        for name, task in task_dict["tasks"].items():
            self.samples += [(name, doc) for doc in task.eval_docs]
        raise SystemExit(0)


def length_asked(task: str) -> int:
    label = task.removeprefix("passkey_long_")
    return int(label[:-1]) * 1024 if label.endswith("k") else int(label)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tasks=TASKS, options=st.lists(OPTIONS, max_size=3))
@example(tasks="passkey_long_400", options=[("--metadata", '{"num_samples": 2}')])
@example(tasks="passkey_long_400", options=[("--metadata", '{"lengths": [1e3]}')])
def test_anything_typed_succeeds_or_is_refused_in_one_line(
    command: Any, monkeypatch: pytest.MonkeyPatch, tasks: str, options: list[tuple[str, str]]
) -> None:
    counted = CountedOnly()
    with monkeypatch.context() as patch:
        patch.setattr(lm_eval.evaluator, "evaluate", counted)
        ended = command("--model", "mesa-hf", "--tasks", tasks, *(word for option in options for word in option))
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    if ended.status == 0:
        assert counted.samples and not errors
        for name, doc in counted.samples:
            assert 0 < doc["tokens"] <= doc["length"] == length_asked(name)
    else:
        assert ended.status == 2, ended.err
        assert len(errors) == 1 and "Traceback" not in ended.err and not counted.samples
        assert not any(jargon in errors[0] for jargon in ("<lambda>", "NoneType", "functools", "object at 0x"))
