"""The commands of the pages for real models: their tasks, options, methods and parameters exist."""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
import typer.main
from lm_eval.utils import simple_parse_args_string

from mesa_lm.cli import main as cli
from mesa_lm.cli.paper import Exhibit
from mesa_lm.harness.model import HF_KEYWORDS
from mesa_lm.harness.model_args import split_model_args
from mesa_lm.harness.task_manager import TaskManager

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "suites.md", DOCS / "real_models.md"]
HOST_OPTIONS = {"--model", "--model_args", "--tasks", "--output_path", "--log_samples", "--metadata"}


def commands():
    """Each command of the pages as its words, with the block's variables put in."""
    text = "".join(page.read_text() for page in PAGES)
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        if language:
            continue
        variables = dict(re.findall(r"^(\w+)=(\S+)$", block, flags=re.MULTILINE))
        for line in block.replace("\\\n", " ").splitlines():
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            if not re.fullmatch(r"\w+=\S+", line):
                yield shlex.split(line)


EVALUATIONS = [words for words in commands() if words[0] == "lm_eval"]
TOOLS = [words for words in commands() if words[0] == "mesa-lm"]


def test_every_command_is_one_or_the_other():
    assert len(EVALUATIONS) > 5 and len(TOOLS) > 20
    others = {words[0] for words in commands()} - {"lm_eval", "mesa-lm"}
    assert others == {"pip", "hf"}


@pytest.fixture(scope="module")
def task_manager():
    return TaskManager()


@pytest.mark.parametrize("words", EVALUATIONS, ids=" ".join)
def test_evaluations_name_tasks_and_methods_that_exist(words, task_manager):
    assert {word for word in words if word.startswith("--")} <= HOST_OPTIONS
    options = dict(pairwise(words))
    assert options["--model"] == "mesa-hf"
    given = options["--model_args"]
    arguments = json.loads(given) if given.startswith("{") else simple_parse_args_string(given)
    others = split_model_args(arguments.pop("method", "mesa"), arguments, HF_KEYWORDS).others
    assert set(others) <= {"pretrained", "dtype", "parallelize", "max_memory_per_gpu", "quantization_config"}
    task_manager.metadata = json.loads(options.get("--metadata", "{}"))
    tasks = options["--tasks"].split(",")
    assert set(task_manager.match_tasks(tasks)) == set(tasks)


def test_every_experiment_of_the_paper_has_its_commands():
    files = {f"pipelines/paper/{path.name}" for path in (DOCS.parent / "pipelines" / "paper").glob("*.yaml")}
    assert {words[2] for words in TOOLS if words[1] == "sweep"} == files
    drawn = [words[2] for words in TOOLS if words[1] == "paper"]
    assert sorted(drawn) == sorted(get_args(Exhibit))
    assert "figures 2 and 11 to 16" in (DOCS / "suites.md").read_text().lower()


@pytest.mark.parametrize("words", TOOLS, ids=" ".join)
def test_tools_have_the_options_used(words):
    command = typer.main.get_command(cli.app).commands[words[1]]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
