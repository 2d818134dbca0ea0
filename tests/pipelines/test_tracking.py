"""What is logged to W&B, read back from the files of offline runs."""

import json
import sys
import types

import pytest
from command_line import run
from made_results import save_results

wandb = pytest.importorskip("wandb")
import wandb_files  # noqa: E402
from wandb.sdk.lib import wbauth  # noqa: E402

from mesa_lm.errors import UsageError  # noqa: E402
from mesa_lm.pipelines import tracking, wandb_content  # noqa: E402


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    wbauth.unauthenticate_session(update_settings=False)  # a key that one test gave is kept in the process


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    for method, right in {"mesa": (9, 9), "origin": (9, 1)}.items():
        scores = {n: {f"doc{i}": float(i < r) for i in range(9)} for n, r in zip((512, 1024), right, strict=True)}
        save_results(folder, method, scores, answer="x" * 2000)
    save_results(folder, "mesa", {512: {"a": 2.0}, 1024: {"a": 3.0}}, metric="nll", task="text")
    return folder


def track(results, tmp_path, **options):
    target = tracking.Target(project="night", group="sweep1", folder=tmp_path / "tracking", **options)
    logged = tracking.log_results([results], target).done
    folders = {wandb_files.run_of(path).display_name: path for path in (tmp_path / "tracking").glob("wandb/offline-*")}
    return logged, folders


def test_every_model_and_method_is_one_run_and_the_leaderboard_another(results, tmp_path):
    logged, folders = track(results, tmp_path)

    assert sorted(logged) == sorted(folders) == ["base mesa", "base origin", "leaderboard"]
    logged_run = wandb_files.run_of(folders["base mesa"])
    assert (logged_run.project, logged_run.run_group, logged_run.job_type) == ("night", "sweep1", "eval")
    assert set(logged_run.tags) == {"org/base", "mesa"}
    rows = [row for row in wandb_files.history(folders["base mesa"]) if "length" in row]
    assert [(row["length"], row["keys/acc"], row["text/nll"]) for row in rows] == [(512, 1.0, 2.0), (1024, 1.0, 3.0)]
    assert rows[0]["keys/acc_low"] == pytest.approx(1 - 2.306 * rows[0]["keys/acc_stderr"], abs=1e-4)
    summary = wandb_files.summary(folders["base origin"])
    assert (summary["keys/effective_length"], summary["keys/rank"]) == (512, 2)
    assert summary["keys/mean"] == pytest.approx(10 / 18)
    metrics = [r.metric for r in wandb_files.records(folders["base mesa"]) if r.WhichOneof("record_type") == "metric"]
    assert {(m.name or m.glob_name, m.step_metric) for m in metrics} >= {("keys/*", "length"), ("text/*", "length")}


def test_config_says_where_the_numbers_come_from_and_hides_secrets(results, tmp_path):
    path = results / "results_keys_mesa.json"
    report = json.loads(path.read_text())
    report["config"]["model_args"] |= {"token": "hf_abcdef", "window": 7, "tokenizer": "org/tok"}
    report["config"]["gen_kwargs"] = "temperature=0,api_key=sk-123"
    report["config"]["mesa_lm"] |= {"commit": "def5678", "dirty": True}
    path.write_text(json.dumps(report | {"git_hash": "abc1234", "date": 2.0}))

    _, folders = track(results, tmp_path)

    config = wandb_files.config(folders["base mesa"])
    assert config["git_hash"] == "abc1234" and config["mesa_lm"]["train_length"] == 512
    assert config["model_args"]["window"] == 7 and config["model_args"]["tokenizer"] == "org/tok"
    assert config["model_args"]["token"] == "[hidden]" and config["gen_kwargs"] == "temperature=0,api_key=[hidden]"
    assert "def5678 edited" in wandb_files.run_of(folders["base mesa"]).tags
    written = [file for file in (tmp_path / "tracking").rglob("*") if file.is_file()]
    assert any(b'"window": 7' in file.read_bytes() for file in written)  # the artifact's copy of the results file
    for file in written:
        assert b"hf_abcdef" not in file.read_bytes() and b"sk-123" not in file.read_bytes()


def test_throughput_counts_every_sample_once(results, tmp_path):
    path = results / "results_keys_mesa.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"total_evaluation_time_seconds": "4.0"}))

    _, folders = track(results, tmp_path)

    summary = wandb_files.summary(folders["base mesa"])
    assert (summary["evaluation_seconds"], summary["tokens_per_s"]) == (4, 9 * (512 + 1024) / 4)


def test_files_of_the_same_name_are_all_attached(results, tmp_path):
    folder = results / "later"
    save_results(folder, "mesa", {2048: {"a": 1.0}})
    logged, folders = track(results, tmp_path)
    assert "base mesa" in logged
    assert [row["length"] for row in wandb_files.history(folders["base mesa"]) if "length" in row] == [512, 1024, 2048]


def test_a_rank_that_others_changed_is_logged_again(results, tmp_path):
    track(results, tmp_path)
    save_results(results, "rerope", {n: {f"doc{i}": 1.0 for i in range(9)} for n in (512, 1024, 2048)})
    logged, folders = track(results, tmp_path)
    assert sorted(logged) == ["base mesa", "base origin", "base rerope", "leaderboard"]
    assert wandb_files.summary(folders["base mesa"])["keys/rank"] == 2


def test_samples_are_capped_and_files_are_attached(results, tmp_path, monkeypatch):
    monkeypatch.setattr(wandb_content, "SAMPLES", 4)
    _, folders = track(results, tmp_path)

    (table,) = folders["base mesa"].glob("files/media/table/samples_*.json")
    rows = json.loads(table.read_text())["data"]
    assert [row[:2] for row in rows] == [["keys", 512]] * 4 + [["keys", 1024]] * 4 + [["text", 512], ["text", 1024]]
    assert [len(row[5]) for row in rows] == [wandb_content.SAMPLE_LENGTH] * 8 + [len("none")] * 2
    kinds = [r.WhichOneof("record_type") for r in wandb_files.records(folders["base mesa"])]
    assert "artifact" in kinds or any(
        r.request.WhichOneof("request_type") == "log_artifact" for r in wandb_files.records(folders["base mesa"])
    )
    # What `wandb sync` will send lies beside the runs.
    assert any((tmp_path / "tracking").glob("artifacts/**/*"))


def test_the_leaderboard_is_one_table_with_every_entry_once(results, tmp_path):
    _, folders = track(results, tmp_path)

    (table,) = folders["leaderboard"].glob("files/media/table/leaderboard_*.json")
    content = json.loads(table.read_text())
    named = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    assert [(row["method"], row["rank"], row["nll"]) for row in named] == [("mesa", 1, 2.5), ("origin", 2, None)]


def test_after_any_number_of_resumes_each_appears_once(results, tmp_path):
    _, before = track(results, tmp_path)
    assert track(results, tmp_path) == ([], before)  # nothing new

    save_results(results, "origin", {512: {"a": 0.0}, 1024: {"a": 0.0}})
    logged, after = track(results, tmp_path)

    assert sorted(logged) == ["base origin", "leaderboard"]
    assert len(list((tmp_path / "tracking").glob("wandb/offline-*"))) == 3
    assert after["base mesa"] == before["base mesa"] and after["base origin"] != before["base origin"]
    ids = [wandb_files.run_of(folders["base origin"]).run_id for folders in (after,)]
    assert before["base origin"].name.endswith(ids[0])  # the same run, so that a sync replaces it
    assert wandb_files.summary(after["base origin"])["keys/mean"] == 0


def test_a_broken_state_file_only_means_logging_again(results, tmp_path):
    track(results, tmp_path)
    (tmp_path / "tracking" / tracking.STATE).write_text("{")
    logged, _ = track(results, tmp_path)
    assert len(logged) == 3
    assert len(list((tmp_path / "tracking").glob("wandb/offline-*"))) == 3


def test_a_run_that_cannot_be_logged_leaves_no_half_and_the_one_before(results, tmp_path, monkeypatch, caplog):
    _, before = track(results, tmp_path)
    save_results(results, "origin", {512: {"a": 0.0}, 1024: {"a": 0.0}})

    log_artifact = wandb.Run.log_artifact

    def broken(self, artifact, **options):
        if artifact.type == "results":
            raise KeyError("not expected")
        return log_artifact(self, artifact, **options)

    monkeypatch.setattr(wandb.Run, "log_artifact", broken)
    logged, after = track(results, tmp_path)
    assert logged == ["leaderboard"]
    assert after["base origin"] == before["base origin"]
    assert "base origin was not logged (KeyError: 'not expected'); results are on disk" in caplog.text


def test_an_outage_fails_nothing_and_is_waited_for_once(results, tmp_path, monkeypatch, caplog):
    """A server that refuses connections: what can be logged offline is, and goes online when there is one."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(tracking, "INIT_TIMEOUT_S", 1)
    logged, folders = track(results, tmp_path)
    assert sorted(logged) == sorted(folders) == ["base mesa", "base origin", "leaderboard"]
    assert caplog.text.count("W&B cannot be reached, logging offline") == 1
    assert {folder.name.partition("-")[0] for folder in (tmp_path / "tracking" / "wandb").glob("*run-*")} == {"offline"}

    init, modes = wandb.init, []
    monkeypatch.setattr(wandb, "init", lambda **options: modes.append(options["mode"]) or init(**options))
    track(results, tmp_path)
    assert modes[0] == "online"  # tried again: the offline ones are not sent yet


def test_mode(monkeypatch, tmp_path, caplog):
    def resolved(mode=None):
        return tracking.Target(project="p", group="g", folder=tmp_path, mode=mode).resolved_mode

    assert resolved() == "offline"
    assert resolved("online") == "offline" and "no API key is known" in caplog.text
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert resolved() == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert resolved() == "offline"
    with pytest.raises(UsageError, match="must be online, offline or disabled, found 'on'"):
        resolved("on")


def test_the_report_is_made_once_and_then_updated(tmp_path, monkeypatch):
    saved = []

    class Report:
        def __init__(self, **options):
            self.url, self.blocks = "https://report", None

        @classmethod
        def from_url(cls, url):
            saved.append(url)
            return cls()

        def save(self):
            saved.append(self.blocks)

    v2 = types.SimpleNamespace(
        Report=Report,
        Runset=lambda **options: options,
        PanelGrid=lambda **options: options,
        WeavePanelSummaryTable=lambda table_name: table_name,
    )
    monkeypatch.setitem(sys.modules, "wandb_workspaces", types.ModuleType("wandb_workspaces"))
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports", types.SimpleNamespace(v2=v2))
    target = tracking.Target(project="night", group="sweep1", folder=tmp_path, entity="team")
    tracking.update_report(target)
    tracking.update_report(target)
    runset = {"project": "night", "entity": "team", "filters": "Group == 'sweep1'"}
    assert saved == [[{"runsets": [runset], "panels": ["leaderboard"]}], "https://report", saved[0]]


def test_command(results, tmp_path):
    shown = run("track", results, "--folder", tmp_path / "t", "--mode", "offline")
    assert shown.output.split("\n")[:3] == ["base mesa", "base origin", "leaderboard"]
    assert (tmp_path / "t" / "wandb.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--project", "a/b:c"), "^W&B project 'a/b:c' cannot be used: Invalid project name"),
        (("--project", ""), "^W&B project must not be empty"),
        (("--group", " "), "^W&B group must not be empty"),
        (("--entity", ""), "^W&B entity must not be empty"),
        (("--mode", "banana"), "^W&B mode must be online, offline or disabled, found 'banana'"),
        (("--folder", "file/below"), "^file/below: cannot be created"),
        (("--folder", "/proc/nope"), "^/proc/nope: cannot be created"),
    ],
)
def test_where_nothing_can_be_logged_is_refused_before_anything_is_read(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=message) as raised:
        run("track", tmp_path / "nowhere", *options)
    assert len(str(raised.value).splitlines()) == 1


def test_what_could_not_be_logged_gives_status_1(results, tmp_path, monkeypatch):
    def broken(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr(wandb.Run, "log_artifact", broken)
    shown = run("track", results, "--folder", tmp_path / "t", "--mode", "offline")
    assert shown.exit_code == 1
    assert shown.stdout == ""  # W&B logs tables as artifacts too, the leaderboard among them
    assert shown.stderr.endswith("error: not logged: base mesa, base origin, leaderboard\n")


def test_damaged_files_are_named_and_the_others_logged(results, tmp_path):
    (results / "broken.json").write_text("{")
    (results / "samples_keys_512_keys_origin.jsonl").write_text("{")
    shown = run("track", results, "--folder", tmp_path / "t", "--mode", "offline")
    assert (shown.exit_code, shown.stdout) == (1, "base mesa\nbase origin\nleaderboard\n")
    assert [line.split(": ")[1] for line in shown.stderr.splitlines()] == [
        f"{results}/broken.json",
        f"{results}/samples_keys_512_keys_origin.jsonl, line 1",
    ]


def test_what_is_unchanged_is_said_to_be_so(results, tmp_path):
    arguments = ("track", results, "--folder", tmp_path / "t", "--mode", "offline")
    run(*arguments)
    again = run(*arguments)
    assert (again.exit_code, again.stdout) == (0, "")
    assert again.stderr == "logged before and unchanged: base mesa, base origin, leaderboard\n"
