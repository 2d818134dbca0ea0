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
from mesa_lm.cli import methods as cli_methods
from mesa_lm.cli.methods import describe_in_full
from mesa_lm.errors import MesaError, UsageError
from mesa_lm.methods.parameters import allowed, declared, parameter
from mesa_lm.models.support import family_rows

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


def test_plot_takes_nll_where_there_is_no_acc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "results_1.json", report({512: 2.5, 1024: 2.75}, metric="nll", task="text"))
    monkeypatch.chdir(tmp_path)

    assert run("plot", tmp_path).stdout == "text_nll.png\n"
    with pytest.raises(UsageError, match="unknown metric 'acc'"):
        run("plot", tmp_path, "--metric", "acc")


@pytest.mark.parametrize("options", [("--by", "position", "--metric", "acc"), ("--length", "512")])
def test_plot_refuses_options_that_it_would_ignore(tmp_path: Path, options: tuple[str, ...]) -> None:
    path = accuracies(tmp_path / "results_1.json", {512: 1.0})

    with pytest.raises(UsageError, match="--by position"):
        run("plot", path, *options)


@pytest.mark.parametrize("command", ["plot", "leaderboard"])
def test_damaged_files_are_left_out_named_and_give_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    accuracies(tmp_path / "in" / "results_1.json", {512: 1.0})
    (tmp_path / "in" / "results_2.json").write_text('{"results": {')
    accuracies(tmp_path / "in" / "results_3.json", {512: 1.75}, method="origin")
    out = {"plot": ("--out", "x.png"), "leaderboard": ("--html", "x.html")}[command]

    done = run(command, "in", *out)

    assert done.exit_code == 1 and (tmp_path / out[1]).stat().st_size > 1000
    broken, beyond = done.stderr.splitlines()
    assert broken.startswith("damaged, left out: in/results_2.json: not readable as JSON: ")
    assert beyond == "damaged, left out: in/results_3.json: acc of keys_512 must be 0 to 1, found 1.75"
    (tmp_path / out[1]).unlink()
    with pytest.raises(UsageError, match="^in/results_2.json: not readable"):
        run(command, "in", *out, "--strict")
    assert not (tmp_path / out[1]).exists()


def test_nothing_but_damaged_files_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text("{")
    with pytest.raises(UsageError, match=r"a.json: not readable as JSON: .* \(and 1 more damaged files\)"):
        run("leaderboard", tmp_path)


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


def test_methods_are_a_table_that_fits_a_screen() -> None:
    shown = run("methods").stdout

    assert max(map(len, shown.splitlines())) <= 80 and len(shown.splitlines()) <= 40
    assert [line.split()[0] for line in shown.splitlines()[3:-2] if line[1] != " "] == list(mesa_lm.available_methods())


@pytest.mark.parametrize("name", mesa_lm.available_methods())
def test_a_method_is_described_with_every_parameter(name: str) -> None:
    shown = " ".join(run("methods", name).stdout.replace("│", " ").split())

    assert shown.startswith(f"{name}: ") and "model families: llama, " in shown
    method = mesa_lm.available_methods()[name]
    assert all(parameter.name in shown for parameter in fields(method))
    listed = json.loads(run("methods", name, "--json").stdout)
    assert list(listed) == [name]
    assert [about["allowed"] for about in listed[name]["parameters"].values()] == [
        allowed(method, parameter) for parameter in declared(method)
    ]


def test_every_family_of_a_method_is_named_once() -> None:
    listed = json.loads(run("methods", "--json").stdout)

    for name, method in listed.items():
        assert len({family.split()[0] for family in method["families"]}) == len(method["families"]), name
    assert "bloom" in listed["mesa"]["families"] and "bloom" not in listed["yarn"]["families"]
    assert {"falcon", "baichuan"} <= set(listed["mesa"]["families"])
    assert "falcon (rotary)" in listed["yarn"]["families"]


def test_families_are_a_table_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = family_rows()
    monkeypatch.setenv("COLUMNS", "80")
    cli_methods._print_families(rows)
    shown = capsys.readouterr().out

    assert max(map(len, shown.splitlines())) <= 80
    assert all(row.model_type in shown for row in rows)
    assert "origin alone" in shown and "all but" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mesaa",), "unknown method 'mesaa'; did you mean 'mesa'"),
        (("mesa", "mesa"), "METHOD has 'mesa' 2 times"),
        (("mesa", "--families"), "--families is of all methods; leave out mesa"),
    ],
)
def test_wrong_methods_are_refused(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(MesaError, match=message):
        run("methods", *arguments)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("draw",), "No such command 'draw'. (see mesa-lm --help)"),
        (("plot",), "Missing argument 'RESULTS'. (see mesa-lm plot --help)"),
        (("methods", "--jsn"), "No such option: --jsn (Possible options: --json) (see mesa-lm methods --help)"),
        (("bench", "--repeats", "0"), "--repeats must be a number of at least 1, found '0' (see mesa-lm bench --help)"),
        (("bench", "--repeats", "x"), "--repeats must be a whole number, found 'x' (see mesa-lm bench --help)"),
        (
            ("plot", "x", "--by", "lenght"),
            "unknown --by 'lenght'; did you mean 'length'? (allowed: cost, depth, length, position) "
            "(see mesa-lm plot --help)",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments: tuple[str, ...], line: str) -> None:
    result = run(*arguments)

    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"error: {line}\n")


def test_without_a_command_there_is_help() -> None:
    result = run()

    assert result.exit_code == 2 and "Commands:" in result.stderr and "error" not in result.stderr


def test_description_of_a_method() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Near:
        """Look at near keys [only].

        Positions stay linear.

        Source: Author 2024, A title, section 3,
        equation 5.

        More text.
        """

        window: "int" = parameter(lambda T: T, "how near, in tokens", shown="T", at_least=1)  # noqa: RUF009

    assert describe_in_full(Near) == {
        "kind": "other",
        "purpose": "Look at near keys [only].",
        "source": "Author 2024, A title, section 3, equation 5.",
        "url": None,
        "parameters": {
            "window": {
                "type": "int",
                "allowed": "an integer of at least 1",
                "default": None,
                "rule": "T",
                "help": "how near, in tokens",
            }
        },
    }


def test_version() -> None:
    assert run("--version").stdout == f"{mesa_lm.__version__}\n"


def test_help_names_every_command() -> None:
    shown = run("--help").stdout
    named = [line.split()[0] for line in shown.partition("Commands:")[2].splitlines() if line.strip()]

    assert set(named) >= COMMANDS.keys()
    modules = {path.stem.replace("_", "-") for path in Path(cli_main.__file__).parent.glob("*.py")}
    assert modules - {"--init--", "main", "extras", "damage", "options", "progress", "choices"} == COMMANDS.keys()


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
