"""The command `lm_eval` as mesa-lm extends it: one line for whatever is wrong, and lm-eval's own elsewhere."""

import json
import shlex
from pathlib import Path
from typing import Any

import lm_eval.evaluator
import pytest

from mesa_lm.harness.command_line import asked_run

OURS = "--model mesa-hf --tasks passkey_long_512 --limit 1"


def refused(ended: Any) -> str:
    """The one line of a refusal."""
    assert (ended.status, ended.out) == (2, ""), ended.err
    told = ("--limit SHOULD ONLY BE USED", "No pretrained= given")
    (line,) = [line for line in ended.err.splitlines() if not line.startswith(told)]
    assert line.startswith("error: ")
    return line


WRONG = [
    ("--model mesa-hf", "no tasks are named"),
    ("--model mesa-hf --tasks", "expected at least one argument"),
    ("--model mesa-hf --tasks ,", "no tasks are named"),
    ("--model mesa-hf --tasks passkey_lon", "did you mean 'passkey_long'?"),
    ("--model hf --tasks passkey_lon", "did you mean 'passkey_long'?"),
    ("--model mesa-hf --tasks passkey_long_1K", "did you mean 'passkey_long_1k'?"),
    ("--model mesa-hf --tasks passkey_long_1.5k", "did you mean 'passkey_long_1536'?"),
    ("--model mesa-hf --tasks passkey_long_0", "allowed: a whole number of tokens, such as passkey_long_3000"),
    ("--model mesa-hf --tasks passkey_long_-5", "allowed: a whole number of tokens"),
    (f"--model mesa-hf --tasks passkey_long_{'9' * 5000}", "allowed: a whole number of tokens"),
    ("--model mesa-hf --tasks passkey_long_99999999999999", "GiB of memory"),
    ("--model mesa-hf --tasks passkey_long,passkey_long_1k", "both stand for passkey_long at 1024 tokens"),
    ("--model mesa-hf --tasks passkey_long_1k,passkey_long_1024", "both stand for passkey_long at 1024 tokens"),
    ("--model mesa-hf --tasks passkey_long_1k passkey_long_1k", "'passkey_long_1k' is named 2 times"),
    ("--model mesa-hf --tasks nothing.yaml", "nothing.yaml"),
    ("--model mesa_hf --tasks passkey_long", "unknown model 'mesa_hf'; did you mean 'mesa-hf'?"),
    ("--model mesa --tasks hellaswag", "unknown model 'mesa'; did you mean 'mesa-hf'?"),
    ("--model MESA-HF --tasks passkey_long", "unknown model 'MESA-HF'; did you mean 'mesa-hf'?"),
    (f"{OURS} --metadata '{{bad'", "Invalid JSON"),
    (f"{OURS} --metadata banana", "expected `key=value`, got 'banana'"),
    (f"{OURS} --metadata '[1]'", "expected `key=value`"),
    (f"{OURS} --metadata '{{\"seed\": 1}}' seed=2", "found more after the object: 'seed=2'"),
    (f'{OURS} --metadata \'{{"method": "rerope"}}\'', "unknown option in metadata 'method'"),
    (f"{OURS} --metadata '{{\"max_seq_lengths\": [1]}}'", "unknown option in metadata 'max_seq_lengths'"),
    (f"{OURS} --metadata '{{\"num_samples\": 1e99}}'", "num_samples must be a whole number"),
    (f"{OURS} --metadata '{{\"num_samples\": 99999999999999}}'", "GiB of memory"),
    (f"{OURS} --metadata '{{\"lengths\": [0]}}'", "lengths must be a list of whole numbers"),
    (f"{OURS} --model_args '{{bad'", "Invalid JSON"),
    (f"{OURS} --model_args banana", "expected `key=value`, got 'banana'"),
    (f"{OURS} --model_args method=banana", "unknown method 'banana'"),
    (f"{OURS} --model_args max_length=-5", "max_length must be a whole number of at least 1; found -5"),
    (f"{OURS} --model_args dtype=banana", "dtype must be auto or one of float32"),
    (f"{OURS} --model_args batch_size=3", "batch_size is given twice"),
    (f"{OURS} --model_args parallelize=banana", "parallelize must be true or false"),
    (
        f"{OURS} --model_args parallelize=true",
        "parallelize=True splits a model over GPUs, of which this machine has none",
    ),
    (f"{OURS} --model_args tokenizer=1", "tokenizer must be a folder, a name on the hub or a tokenizer; found 1"),
    (f"{OURS} --model_args pretrained=", "error: "),
    (f"{OURS} --gen_kwargs '{{bad'", "Invalid JSON"),
    (f"{OURS} --gen_kwargs banana=3", "unknown name in gen_kwargs 'banana'"),
    (f"{OURS} --gen_kwargs temprature=3", "did you mean 'temperature'?"),
    (f"{OURS} --gen_kwargs do_sample=true,temperature=-1", "temperature must be a number of at least 0"),
    (f"{OURS} --gen_kwargs max_gen_toks=banana", "max_gen_toks must be a whole number"),
    (f"{OURS} --device banana", "unknown device 'banana'"),
    (f"{OURS} --device cuda:99", "device 'cuda:99' is not on this machine"),
    (f"{OURS} --batch_size banana", "batch_size must be a whole number of at least 1, 'auto' or 'auto:N'"),
    (f"{OURS} --batch_size 0", "batch_size must be"),
    (f"{OURS} --batch_size -3", "batch_size"),
    (f"{OURS} --max_batch_size 0", "max_batch_size must be"),
    (f"{OURS} --max_batch_size two", "--max_batch_size must be a whole number; found 'two'"),
    ("--model mesa-hf --tasks passkey_long_512 --limit 0", "limit must be"),
    ("--model mesa-hf --tasks passkey_long_512 --limit banana", "--limit must be a number; found 'banana'"),
    (f"{OURS} --seed banana", "--seed must be one whole number"),
    (f"{OURS} --num_fewshot 2", "num_fewshot must be 0 for passkey_long_512"),
    (f"{OURS} --taks passkey_long", "unknown option '--taks'; did you mean '--tasks'?"),
    (f"{OURS} --verbosity banana", "unknown verbosity 'BANANA'"),
    (f"{OURS} --include_path nowhere", "there is no folder 'nowhere'"),
    (f"{OURS} --config nowhere.yaml", "Config file not found"),
    (f"{OURS} --log_samples", "Specify --output_path"),
    (f"{OURS} --output_path /proc/nope", "output_path: nothing can be saved in '/proc/nope"),
    (f"{OURS} --use_cache /proc/nope/cache", "use_cache: nothing can be saved in '/proc/nope'"),
    (f"{OURS} --apply_chat_template", "has no chat template; leave it out"),
    ("--model mesa-hf --tasks long_ppl_512 --metadata num_samples=9999999", "num_samples must be at most"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[arguments[-60:] for arguments, _ in WRONG])
def test_what_is_wrong_is_said_in_one_line(command: Any, arguments: str, message: str) -> None:
    line = refused(command(*shlex.split(arguments)))
    assert message in line
    assert len(line) < 1500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: mesa-hf\nmodel: mesa-hf\n", "unknown key in run.yaml 'modle'; did you mean 'model'?"),
        ("model: mesa-hf\nmetadata: 5\n", "metadata must hold names and values; found 5"),
        ("model: mesa-hf\ntasks: {a: 1}\n", "tasks must be names"),
        ("model: mesa-hf\ntasks: [passkey_lon]\n", "did you mean 'passkey_long'?"),
        ("model: mesa-hf\ntasks: passkey_long\ndevice: banana\n", "unknown device 'banana'"),
    ],
)
def test_a_file_of_settings_is_checked_as_well(command: Any, text: str, message: str) -> None:
    Path("run.yaml").write_text(text)
    assert message in refused(command("--config", "run.yaml"))


def test_a_run_shows_its_table_and_two_lines_and_nothing_buries_them(command: Any) -> None:
    ended = command(
        "--model", "mesa-hf", "--tasks", "passkey_long", "--metadata", '{"lengths": [300, 600], "num_samples": 2}'
    )
    assert ended.status == 0
    *_, shown, following = ended.out.splitlines()
    assert shown == (
        "Shown: passkey_long at 2 lengths from 300 to 600 tokens, 2 samples each; method mesa on the demo model, "
        "trained on 512 tokens."
    )
    assert following == (
        "Next: --model_args method=origin shows the same without extrapolation; "
        "--output_path FOLDER keeps it for `mesa-lm plot`."
    )
    lines = [line for line in ended.err.replace("\r", "\n").splitlines() if line.strip()]
    assert [line for line in lines if not line.startswith("Generating: ")] == [
        "No pretrained= given: running the demo model that ships with mesa-lm"
    ]


def test_saved_results_are_named(command: Any) -> None:
    ended = command(*shlex.split(f"{OURS} --model_args method=origin --output_path out --log_samples"))
    (saved,) = Path("out").glob("*/results_*.json")
    assert ended.status == 0
    assert ended.out.splitlines()[-2:] == [
        "Shown: passkey_long at 512 tokens, 1 sample; method origin on the demo model, trained on 512 tokens.",
        "Next: --model_args method=mesa shows the same, extrapolated; `mesa-lm plot out` draws it.",
    ]
    assert json.loads(saved.read_text())["results"]["passkey_long_512"]["sample_len"] == 1


def test_results_that_could_not_be_saved_end_with_an_error(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    ended = command(*shlex.split(f"{OURS} --output_path out"))
    assert ended.status == 1
    assert "passkey_long" in ended.out
    assert ended.err.splitlines()[-1] == "error: the results, printed above, could not be saved in 'out'"


def test_other_models_on_other_tasks_are_lm_evals_alone(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="Invalid JSON"):
        command("--model", "hf", "--tasks", "hellaswag", "--metadata", "{bad")
    with pytest.raises(ValueError, match="no model for this name found"):
        command("--model", "hff", "--tasks", "hellaswag", "--limit", "1")
    assert command("--model", "hf", "--taks", "hellaswag").err.startswith("usage: lm-eval")

    def interrupt(**options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lm_eval.evaluator, "simple_evaluate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        command("--model", "dummy", "--tasks", "hellaswag")
    assert command(*shlex.split(OURS)).status == 130


def test_what_fails_later_is_one_line_too(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        raise RuntimeError("it is late\nand dark")

    monkeypatch.setattr(lm_eval.evaluator, "simple_evaluate", fail)
    ended = command(*shlex.split(OURS))
    assert ended.status == 1
    assert ended.err.splitlines()[-1] == "error: RuntimeError: it is late; LMEVAL_LOG_LEVEL=DEBUG shows where"
    monkeypatch.setenv("LMEVAL_LOG_LEVEL", "DEBUG")
    with pytest.raises(RuntimeError):
        command(*shlex.split(OURS))


@pytest.mark.parametrize(
    ("arguments", "ours"),
    [
        ("--model mesa-hf --tasks hellaswag", True),
        ("--model=mesa-hf", True),
        ("-M mesa_hf -t hellaswag", True),
        ("run --model hf --tasks hellaswag,passkey_long_4k", True),
        ("--model hf --tasks hellaswag passkey_lon", True),
        ("--model mesa-hf --tasks", True),
        ("--model hf --tasks hellaswag", False),
        ("--model mamba_ssm --tasks lambada", False),
        ("ls tasks", False),
        ("--model", False),
        ("", False),
    ],
)
def test_whether_a_command_is_about_this_project(arguments: str, ours: bool) -> None:
    assert asked_run(shlex.split(arguments)).resembles_ours is ours
