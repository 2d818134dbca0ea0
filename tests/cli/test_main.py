"""The mesa-lm command."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import typer
from command_line import in_process, run
from made_results import report, save

import mesa_lm
from mesa_lm.cli import main as cli_main
from mesa_lm.cli.methods import describe
from mesa_lm.methods.parameters import declared, parameter

COMMANDS = typer.main.get_command(cli_main.app).commands


def accuracies(path: Path, values: dict[int, float], *, method: str = "mesa", date: float = 1.0) -> Path:
    """Write what lm-eval would for an accuracy of each length."""
    return save(path, report(values, model_args={"method": method}, date=date))


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_plot_draws_and_prints_the_path(tmp_path: Path, suffix: str) -> None:
    accuracies(tmp_path / "results_1.json", {512: 1.0, 1024: 0.9})
    accuracies(tmp_path / "results_2.json", {512: 1.0, 1024: 0.0}, method="origin")
    out = tmp_path / f"picture{suffix}"

    result = run("plot", tmp_path, "--out", out)

    assert (result.exit_code, result.stdout) == (0, f"{out}\n")
    assert out.stat().st_size > 1000


def test_plot_names_the_picture_after_task_and_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = accuracies(tmp_path / "results_1.json", {512: 1.0})
    monkeypatch.chdir(tmp_path)

    assert run("plot", path).stdout == "keys_acc.png\n"
    assert (tmp_path / "keys_acc.png").exists()


def test_wrong_input_gives_one_line_and_status_2(tmp_path: Path) -> None:
    done = in_process("plot", tmp_path / "none")

    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/none: no such file or folder")


def test_notes_go_to_stderr(tmp_path: Path) -> None:
    accuracies(tmp_path / "results_1.json", {512: 1.0}, date=1.0)
    accuracies(tmp_path / "results_2.json", {512: 0.5}, date=2.0)

    done = in_process("plot", tmp_path, "--out", tmp_path / "picture.svg")

    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/picture.svg\n")
    assert "results_2.json replaces the older" in done.stderr


def test_wrong_options_give_status_2() -> None:
    assert run("plot").exit_code == 2
    assert run("draw").exit_code == 2
    assert run("methods", "--jsn").exit_code == 2


def test_methods_as_json_name_every_method_and_parameter() -> None:
    listed = json.loads(run("methods", "--json").stdout)

    assert set(listed) == set(mesa_lm.available_methods())
    for name, method in mesa_lm.available_methods().items():
        assert listed[name]["purpose"].endswith(".")
        assert listed[name]["source"]
        assert {key: (about["default"], about["rule"]) for key, about in listed[name]["parameters"].items()} == {
            key: (getattr(method(), key), declaration.shown if declaration.rule else None)
            for key, declaration in declared(method).items()
        }
        assert all(about["help"] and about["type"] for about in listed[name]["parameters"].values())


def test_methods_as_tables_name_every_method_and_parameter() -> None:
    shown = run("methods").stdout

    for name, method in mesa_lm.available_methods().items():
        assert f"{name}: " in shown
        assert all(parameter.name in shown for parameter in fields(method))
    assert shown.count("model families: llama, ") == len(mesa_lm.available_methods())
    listed = json.loads(run("methods", "--json").stdout)
    assert "bloom" in listed["mesa"]["families"] and "bloom" not in listed["yarn"]["families"]


def test_description_of_a_method() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Near:
        """Look at near keys [only].

        Positions stay linear.

        Source: Author 2024, A title, section 3,
        equation 5.

        More text.
        """

        window: "int" = parameter(lambda T: T, "how near, in tokens", shown="T")  # noqa: RUF009

    assert describe(Near) == {
        "purpose": "Look at near keys [only].",
        "source": "Author 2024, A title, section 3, equation 5.",
        "parameters": {"window": {"type": "int", "default": None, "rule": "T", "help": "how near, in tokens"}},
    }


def test_version() -> None:
    assert run("--version").stdout == f"{mesa_lm.__version__}\n"


def test_help_names_every_command() -> None:
    shown = run("--help").stdout
    named = [line.split()[0] for line in shown.partition("Commands:")[2].splitlines() if line.strip()]

    assert set(named) >= COMMANDS.keys()
    modules = {path.stem for path in Path(cli_main.__file__).parent.glob("*.py")}
    assert modules - {"__init__", "main", "extras"} == COMMANDS.keys()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_with_every_option(name: str) -> None:
    result = run(name, "--help")
    shown = " ".join(result.stdout.split())

    assert result.exit_code == 0
    assert " ".join((COMMANDS[name].help or "nothing").split()) in shown
    for param in COMMANDS[name].params:
        names = [param.metavar] if param.param_type_name == "argument" else param.opts
        assert all(option in shown for option in names), param.name
        assert param.help and " ".join(param.help.split()) in shown, param.name
