"""The command `lm_eval` as mesa-lm extends it: one line for whatever is wrong, and lm-eval's own elsewhere."""

import logging
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval._cli.harness
import lm_eval._cli.run
import pytest
from lm_eval.__main__ import cli_evaluate

OURS = "--model mesa-hf --tasks passkey_long_512 --limit 1"


class Ended:
    """How a command ended.

    Attributes:
        status: Of the process.
        out: What it printed on stdout.
        err: And on stderr, without logs of warnings.
    """

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Any]:
    """Run the command in this process, in a folder of its own that is no repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("LMEVAL_LOG_LEVEL", raising=False)
    logger = logging.getLogger("lm_eval")

    def run(*arguments: str) -> Ended:
        capfd.readouterr()
        handler = logging.StreamHandler()  # to the present stderr
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["lm_eval", *arguments])
            patch.setattr(lm_eval.utils, "_LOGGING_CONFIGURED", True)
            logger.addHandler(handler)
            try:
                cli_evaluate()
                status = 0
            except SystemExit as ended:
                status = int(ended.code or 0)
            finally:
                logger.removeHandler(handler)
        captured = capfd.readouterr()
        return Ended(status, captured.out, captured.err)

    level = logger.level
    yield run
    logger.setLevel(level)


def refused(ended: Ended) -> str:
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
