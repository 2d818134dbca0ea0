"""Sweep files: those that ship, environment variables, `--set`, and what is said of wrong settings."""

from datetime import datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from lm_eval.config.evaluate_config import EvaluatorConfig

from mesa_lm.errors import MesaError, MethodError, UsageError

pytest.importorskip("ray")
from mesa_lm.pipelines import settings, sweep_file
from mesa_lm.pipelines.sweep_file import load_sweep, override_setting, with_variables

TEXT = "{name: a, out: b, methods: [mesa], tasks: [{task: passkey_long}], lengths: [512]}"


def load(folder: Path, text: str, *overrides: str) -> settings.Sweep:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return load_sweep(path, overrides)


@pytest.mark.parametrize(
    ("out", "group", "found"),
    [
        ("a/{date}", None, ("a/2026-03-01", "n 2026-03-01")),
        ("a/{name}-{date}-{time}", None, ("a/n-2026-03-01-010203", "n 2026-03-01 010203")),
        ("a/{date}", "mine {commit}", ("a/2026-03-01", "mine " + "c" * 12 + "-edited")),
        ("a/{commit}", None, ("a/" + "c" * 12 + "-edited", None)),
        ("a", "mine", ("a", "mine")),
    ],
)
def test_a_night_has_a_folder_and_a_group_of_its_own(tmp_path, monkeypatch, out, group, found):
    monkeypatch.setattr(sweep_file, "local_time", lambda: datetime(2026, 3, 1, 1, 2, 3))
    monkeypatch.setattr(sweep_file, "package_commit", lambda: ("c" * 40, True))
    wandb = f"{{project: p{f', group: {group!r}' if group else ''}}}"
    sweep = load(tmp_path, f"{{name: n, out: '{out}', methods: mesa, tasks: a, wandb: {wandb}}}")
    assert (str(sweep.out), sweep.wandb.group) == found
    assert sweep.out_is_dated == ("{date}" in out)


def test_the_night_is_that_of_this_machines_clock(tmp_path):
    days = {datetime.now().strftime("%Y-%m-%d")}
    sweep = load(tmp_path, "{name: n, out: 'a/{date}', methods: mesa, tasks: a}")
    assert sweep.out.name in days | {datetime.now().strftime("%Y-%m-%d")}  # midnight may pass


@pytest.mark.parametrize("out", ["a/{day}", "a/{", "a/{}"])
def test_other_words_in_braces_are_refused(tmp_path, out):
    with pytest.raises(
        UsageError, match=r"out: unknown .* \(allowed: \{date\}, \{time\}, \{commit\}, \{name\}\), found"
    ):
        load(tmp_path, f"{{name: n, out: '{out}', methods: mesa, tasks: a}}")


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


def test_settings_of_generation_and_chats_are_lm_evals(tmp_path):
    written = ["{task: a, gen_kwargs: 'do_sample=True,top_p=0.9'}", "{task: b, apply_chat_template: rag}"]
    written += ["{task: c, apply_chat_template: true, fewshot_as_multiturn: false, system_instruction: hi}"]
    sweep = load(tmp_path, f"{{name: n, out: o, methods: mesa, tasks: [{', '.join(written)}, d]}}")
    passed = [task.evaluation for task in sweep.tasks]
    stock = EvaluatorConfig()
    names = ("num_fewshot", "gen_kwargs", "apply_chat_template", "fewshot_as_multiturn", "system_instruction")
    assert passed[3] == {name: getattr(stock, name) for name in names}
    assert passed[0] == passed[3] | {"gen_kwargs": {"do_sample": True, "top_p": 0.9}}
    assert passed[1] == passed[3] | {"apply_chat_template": "rag", "fewshot_as_multiturn": True}
    turns = {"apply_chat_template": True, "fewshot_as_multiturn": False, "system_instruction": "hi"}
    assert passed[2] == passed[3] | turns


def test_a_line_of_the_file_is_named_for_what_stands_in_it(tmp_path):
    text = "name: a\nout: b\n\nmethods: [mesa]\ntasks:\n  - a\n  - task: b\n    limit: -3\n"
    with pytest.raises(UsageError, match="\n  line 8: tasks.1.limit: "):
        load(tmp_path, text)
    with pytest.raises(UsageError, match="\n  tasks.1.limit: "):
        load(tmp_path, text, "tasks.1.limit=-4")
    with pytest.raises(UsageError, match="\n  line 5: tasks: "):
        load(tmp_path, text.replace("- task: b", "- a").replace("    limit: -3\n", ""))


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
    assert str(caught.value).splitlines()[1:] == [f"  line 1: {message}"]


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
        (
            "{name: a/b, methods: [mesa]}",
            "name: String should match .*\n  line 1: out is missing\n  line 1: tasks is missing",
        ),
    ],
)
def test_wrong_settings(text, message, tmp_path):
    with pytest.raises(UsageError, match=message) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path}/sweep.yaml:")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("methods: [mesa, rerope, mesa]", "methods: entries 0 and 2 are the same, found"),
        ("methods: [mesa, {method: mesa}]", "methods: entries 0 and 1 are the same, found"),
        ("tasks: [{task: a}, a]", "tasks: entries 0 and 1 are the same, found"),
        ("lengths: [512, 512]", "lengths: entries 0 and 1 are the same, found"),
        (
            "lengths: [99999999999999]",
            "lengths.0: Input should be less than or equal to 16777216, found 99999999999999",
        ),
        (
            "tasks: [{task: a, metadata: {num_samples: 9999999}}]",
            "tasks.0.metadata: num_samples must be at most 100000",
        ),
        ("tasks: [{task: ''}]", "tasks.0.task: must not be empty, found ''"),
        (
            "tasks: [{task: a, gen_kwargs: {temprature: 0.5}}]",
            "tasks.0.gen_kwargs: unknown name in gen_kwargs 'temprature'; did you mean 'temperature'?",
        ),
        (
            "tasks: [{task: a, gen_kwargs: 'temperature=hot,top_p=0.9'}]",
            "tasks.0.gen_kwargs: gen_kwargs: temperature must be a number of at least 0; found 'hot', found",
        ),
        ("tasks: [{task: a, gen_kwargs: [5]}]", "tasks.0.gen_kwargs: must hold names and values, or be a text"),
        (
            "tasks: [{task: a, apply_chat_template: 1}]",
            "tasks.0.apply_chat_template: must be true, false or the name of a chat template, found 1",
        ),
        ("tasks: [{task: a, fewshot_as_multiturn: true}]", "tasks.0: fewshot_as_multiturn needs apply_chat_template"),
        ("tasks: [{task: a, system_instruction: 5}]", "tasks.0.system_instruction: must be a text, found 5"),
        (
            "tasks:\n- {task: a}\n- {task: b, aply_chat_template: true}",
            "unknown setting 'tasks.1.aply_chat_template'; did you mean 'tasks.1.apply_chat_template'?",
        ),
        ("tasks: []", "tasks: must have at least one entry, found ()"),
        ("out: ''", "out: must be a folder of its own, found ''"),
        ("out: .", "out: must be a folder of its own, found '.'"),
        ("workers: 3", "workers: must be a mapping of settings, found 3"),
        ("workers: {count: banana}", "workers.count: must be auto or a whole number above 0, found 'banana'"),
        ("workers: {cpus: .inf}", "workers.cpus: must be a finite number, found inf"),
        ("seed: 1.5", "seed: must be a whole number, found 1.5"),
        ("models: 3", "models: must be a list, found 3"),
        (
            "models: [{args: {train_length: 100}}]",
            "models.0.args: train_length belongs to a method; give it in the entry of methods, found",
        ),
        ("models: [3]", "models.0: must be a mapping of settings, found 3"),
    ],
)
def test_what_is_wrong_is_said_in_plain_words_and_one_line(changed, message, tmp_path):
    name = changed.partition(":")[0]
    base = {"name": "a", "out": "b", "methods": "[mesa]", "tasks": "[a]"}
    text = "\n".join([*(f"{key}: {value}" for key, value in base.items() if key != name), changed])
    with pytest.raises(UsageError) as caught:
        load(tmp_path, text)
    first, *told = str(caught.value).splitlines()
    assert first == f"{tmp_path}/sweep.yaml:" and len(told) == 1
    assert told[0].startswith(f"  line {len(text.splitlines())}: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\nout: c", "not readable as YAML: 'name' is given twice in .* line 2"),
        ("workers: {cpus: 1, cpus: 2}", "'cpus' is given twice"),
        ("name: &a [*a]", "not readable as YAML"),
        ("[" * 5000, "not readable as YAML"),
        ("name: 2026-99-99", "not readable as YAML: month must be in 1..12"),
    ],
)
def test_yaml_that_says_two_things_or_none_is_refused(text, message, tmp_path):
    with pytest.raises(UsageError, match=message) as caught:
        load(tmp_path, text)
    assert len(str(caught.value).splitlines()) == 1


def test_merged_mappings_may_replace_what_they_are_merged_with(tmp_path):
    text = "name: a\nout: b\nmethods: mesa\ntasks: [&t {task: a, limit: 1}, {<<: *t, limit: 2}]"
    assert [entry.limit for entry in load(tmp_path, text).tasks] == [1, 2]


NAMES = st.sampled_from(
    [*settings.Sweep.model_fields, *settings.WorkerSettings.model_fields, *settings.TaskEntry.model_fields, "method"]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["mesa", "rerope", "passkey_long", "auto", "${HOME}", "${X", "{date}", "{", "b/c", "~"])
    | st.dates()
)
VALUES = st.recursive(
    SCALARS,
    lambda part: (
        st.lists(part, max_size=3) | st.dictionaries(NAMES | st.text(max_size=3) | st.integers(), part, max_size=4)
    ),
    max_leaves=8,
)
VALID = {"name": "a", "out": "b/c", "methods": ["mesa"], "tasks": [{"task": "passkey_long"}], "workers": {"cpus": 1}}


@given(st.dictionaries(NAMES, VALUES, max_size=4), st.booleans())
@example({"methods": [{"method": "mesa", "reserve": [1]}]}, True)
@example({"out": "a\0b"}, True)
def test_whatever_stands_in_the_file_it_is_read_or_refused_by_name(tmp_path_factory, content, is_change):
    """Generated files: settings, or an error of ours that names what is wrong."""
    path = tmp_path_factory.getbasetemp() / "generated.yaml"
    path.write_text(yaml.safe_dump({**VALID, **content} if is_change else content))
    try:
        sweep = load_sweep(path)
    except MesaError as error:
        assert str(error) and "Traceback" not in str(error) and "pydantic" not in str(error)
        assert all(len(line) < 1000 for line in str(error).splitlines())
    else:
        assert sweep.methods and sweep.tasks and str(sweep.out) not in ("", ".")


@given(st.text(max_size=40))
def test_whatever_text_it_is(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "text.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(MesaError):
        load_sweep(path)


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
    for name, found in environment.items():
        monkeypatch.setenv(name, found)
    assert with_variables({"a": [text, 1]}) == {"a": [value, 1]}


@pytest.mark.parametrize(
    ("text", "message"), [("${A}", "variable A is not set"), ("${A-b}", "written"), ("${A", "written")]
)
def test_wrong_environment_variables(text, message, monkeypatch):
    monkeypatch.delenv("A", raising=False)
    with pytest.raises(UsageError, match=message):
        with_variables(text)
