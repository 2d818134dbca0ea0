"""Sweep files: those that ship, environment variables, `--set`, and what is said of wrong settings."""

from pathlib import Path

import pytest

from mesa_lm.errors import MethodError, UsageError

pytest.importorskip("ray")
from mesa_lm.pipelines import settings
from mesa_lm.pipelines.sweep_file import load_sweep, override_setting, with_variables

TEXT = "{name: a, out: b, methods: [mesa], tasks: [{task: passkey_long}], lengths: [512]}"


def load(folder: Path, text: str, *overrides: str) -> settings.Sweep:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return load_sweep(path, overrides)


@pytest.mark.parametrize("name", ["demo", "nightly", "paper"])
def test_the_sweep_files_that_ship_are_valid(name, monkeypatch):
    monkeypatch.setenv("MESA_OUT", "/some/where")
    sweep = load_sweep(Path(settings.__file__).parent / f"{name}.yaml")
    assert sweep.name == name
    assert {"origin", "mesa"} <= {choice.method for choice in sweep.methods}


def test_names_stand_for_entries(tmp_path):
    sweep = load(tmp_path, "{name: a, out: b, methods: mesa, tasks: [one, {task: two, limit: 3}]}")
    assert sweep.methods == (settings.MethodEntry(method="mesa"),)
    assert sweep.tasks == (settings.TaskEntry(task="one"), settings.TaskEntry(task="two", limit=3))
    assert sweep.models[0].name == "demo" and sweep.models[0].arguments == {}


def test_lengths_are_for_tasks_that_name_none(tmp_path):
    sweep = load(
        tmp_path, "{name: a, out: b, methods: mesa, lengths: [5], tasks: [a, {task: b, metadata: {lengths: [6]}}]}"
    )
    assert [sweep.metadata(task) for task in sweep.tasks] == [{"lengths": [5]}, {"lengths": [6]}]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{methd: mesa, window: 5}", "methods.0.method is missing; did you mean 'method' where there is 'methd'?"),
        ("{window: 5}", "methods.0.method is missing"),
    ],
)
def test_a_method_without_its_name(entry, message, tmp_path):
    with pytest.raises(UsageError) as caught:
        load(tmp_path, f"{{name: a, out: b, methods: [{entry}], tasks: [passkey_long]}}")
    assert str(caught.value).splitlines()[1:] == [f"  {message}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "a sweep must be a mapping of settings, found list"),
        ("a: [", "not readable as YAML"),
        (f"{TEXT[:-1]}, wrokers: 5}}", "unknown setting 'wrokers'; did you mean 'workers'?"),
        (
            f"{TEXT[:-1]}, workers: {{cuont: 5}}}}",
            "'workers.cuont'; did you mean 'workers.count'. .allowed: workers.count,",
        ),
        (f"{TEXT[:-1]}, models: [{{pretraned: a}}]}}", "did you mean 'models.0.pretrained'?"),
        (
            f"{TEXT[:-1]}, workers: {{gpus: 1.5}}}}",
            "workers.gpus: must be a whole number above 1, .*, found 1.5",
        ),
        ("{name: a/b, methods: [mesa]}", "name: String should match .*\n  out is missing\n  tasks is missing"),
    ],
)
def test_wrong_settings(text, message, tmp_path):
    with pytest.raises(UsageError, match=message) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path}/sweep.yaml:")


def test_wrong_methods_are_the_methods_own_error(tmp_path):
    with pytest.raises(MethodError, match="unknown method 'msa'; did you mean 'mesa'?"):
        load(tmp_path, TEXT.replace("mesa", "msa"))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="none.yaml: cannot be read: No such file"):
        load_sweep(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("workers.count=2", {"workers": {"count": 2}}),
        ("tasks.0.limit=5", {"tasks": [{"task": "a", "limit": 5}]}),
        ("tasks.0=b", {"tasks": ["b"]}),
        ("lengths=[1, 2]", {"lengths": [1, 2]}),
        ("wandb.project=a=b", {"wandb": {"project": "a=b"}}),
        ("name=", {"name": None}),
    ],
)
def test_settings_are_replaced(override, changed):
    content = {"name": "n", "tasks": [{"task": "a"}]}
    override_setting(content, override)
    assert content == {"name": "n", "tasks": [{"task": "a"}]} | changed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("=3", "--set needs name=value, found '=3'"),
        ("tasks", "--set needs name=value, found 'tasks'"),
        ("a=[", "--set a: not readable as YAML: '\\['"),
        ("tasks.1.limit=5", "--set tasks.1.limit: there is no '1' to set"),
        ("tasks.x=5", "--set tasks.x: there is no 'x' to set"),
        ("name.a=5", "--set name.a: there is no 'a' to set"),
    ],
)
def test_settings_that_are_not_there(override, message):
    with pytest.raises(UsageError, match=message):
        override_setting({"name": "n", "tasks": [{"task": "a"}]}, override)


def test_overrides_are_validated_with_the_rest(tmp_path):
    assert load(tmp_path, TEXT, "tasks.0.limit=5", "lengths=[7]").tasks[0].limit == 5
    with pytest.raises(UsageError, match="tasks.0.limit: Input should be greater than 0, found 0"):
        load(tmp_path, TEXT, "tasks.0.limit=0")


@pytest.mark.parametrize(
    ("text", "environment", "value"),
    [
        ("${A}/b", {"A": "x"}, "x/b"),
        ("${A:-y}/b", {"A": "x"}, "x/b"),
        ("${A:-y}/b", {}, "y/b"),
        ("${A:-y}/b", {"A": ""}, "y/b"),
        ("${A:-}b", {}, "b"),
        ("${A}b", {"A": ""}, "b"),
        ("$A and {A}", {}, "$A and {A}"),
    ],
)
def test_environment_variables(text, environment, value, monkeypatch):
    monkeypatch.delenv("A", raising=False)
    for name, given in environment.items():
        monkeypatch.setenv(name, given)
    assert with_variables({"a": [text, 1]}) == {"a": [value, 1]}


@pytest.mark.parametrize(
    ("text", "message"), [("${A}", "variable A is not set"), ("${A-b}", "written"), ("${A", "written")]
)
def test_wrong_environment_variables(text, message, monkeypatch):
    monkeypatch.delenv("A", raising=False)
    with pytest.raises(UsageError, match=message):
        with_variables(text)
