"""Methods of other packages: found by their entry point; a broken one is named and costs nothing else."""

import importlib
import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from helpers import decode, random_ids
from installed_package import METHOD, install_package
from tiny_models import tiny_model

import mesa_lm
from mesa_lm.errors import MethodError
from mesa_lm.harness.model_args import split_model_args
from mesa_lm.methods import installed
from mesa_lm.pipelines.settings import MethodEntry

IDS = random_ids(97)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder for packages, on Python's path for this test."""
    monkeypatch.syspath_prepend(tmp_path)
    caches = (installed._offered, installed._loaded, installed._log_once)
    for cache in caches:
        cache.cache_clear()
    modules = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - modules:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]
    for cache in caches:
        cache.cache_clear()


def test_a_method_of_another_package_is_one_like_any_other(site):
    install_package(site, "nearest_paper", METHOD, {"nearest": "nearest_paper:Nearest"})
    assert list(mesa_lm.available_methods())[-1] == "nearest"
    model = tiny_model()
    with torch.no_grad():
        with mesa_lm.extrapolate(model, "nearest", keys=9) as handle:
            assert installed.distribution_of(type(handle.method)) == "nearest_paper 1.2"
            found = decode(model, IDS, 60)
        with mesa_lm.extrapolate(model, "lm_infinite", n_global=0, n_local=9):
            torch.testing.assert_close(found, decode(model, IDS, 60), atol=1e-4, rtol=0)
    with pytest.raises(MethodError, match="unknown parameter of method 'nearest' 'kees'; did you mean 'keys'"):
        mesa_lm.make_method("nearest", kees=3)
    assert split_model_args("nearest", {"keys": 5, "dtype": "float32"}, ["dtype"]).method.keys == 5
    assert MethodEntry(method="nearest", keys=5).label == "nearest (keys=5)"
    assert installed.distribution_of(mesa_lm.Mesa) is None


def test_a_class_needs_no_package_in_python(site):
    (site / "notebook.py").write_text(METHOD)
    model, kind = tiny_model(), importlib.import_module("notebook").Nearest
    assert kind.name not in mesa_lm.available_methods()
    with mesa_lm.extrapolate(model, kind, keys=9) as handle:
        assert handle.method.keys == 9
    with pytest.raises(MethodError, match="unknown parameter of method 'nearest' 'kees'"):
        mesa_lm.extrapolate(model, kind, kees=9)


BROKEN = {
    "fails at import": ("1 / 0", "broken:Nearest", "broken:Nearest fails with ZeroDivisionError: division by zero"),
    "leaves Python": ("import sys; sys.exit(3)", "broken:Nearest", "fails with SystemExit: 3"),
    "has no such class": (METHOD, "broken:Farthest", "fails with AttributeError: module 'broken' has no attribute"),
    "needs what is missing": ("import no_such_module", "broken:N", "fails with ModuleNotFoundError: No module named"),
    "is a function": ("def nearest(): pass", "broken:nearest", "broken:nearest is no subclass of mesa_lm.Method"),
    "has another name": (
        METHOD.replace('"nearest"', '"near"'),
        "broken:Nearest",
        "has the name 'near', its entry point",
    ),
    "is no dataclass": (METHOD.replace("@dataclass(", "(lambda **_: lambda kind: kind)("), "broken:Nearest", "is no"),
    "has a plain field": (
        METHOD.replace("    keys:", "    more: int = 3\n    keys:"),
        "broken:Nearest",
        "fields that are not declared by parameter(): more",
    ),
    "has no default": (
        METHOD.replace("lambda T: T // 4", "0"),
        "broken:Nearest",
        "keys must be an integer of at least 1, found 0",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_package_is_named_and_costs_nothing_else(site, case, caplog):
    code, value, message = BROKEN[case]
    install_package(site, "broken", code, {"nearest": value})
    install_package(site, "sound", METHOD.replace('"nearest"', '"sound"'), {"sound": "sound:Nearest"})
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            assert "nearest" not in mesa_lm.available_methods()
            assert "sound" in mesa_lm.available_methods()
    (record,) = caplog.records
    assert "method 'nearest' of broken 1.2 cannot be used: " in record.message and message in record.message
    assert "\n" not in record.message
    for ask in (lambda: mesa_lm.make_method("nearest"), lambda: split_model_args("nearest", {}, [])):
        with pytest.raises(MethodError, match="method 'nearest' of broken 1.2 cannot be used"):
            ask()
    mesa_lm.make_method("sound")


def test_two_packages_of_one_name_are_both_named(site, caplog):
    for name in ("first", "second"):
        install_package(site, name, METHOD, {"nearest": f"{name}:Nearest"})
    with pytest.raises(MethodError, match="'nearest' is offered by first 1.2 and by second 1.2; uninstall one"):
        mesa_lm.make_method("nearest")
    assert "nearest" not in mesa_lm.available_methods()
    assert [record.message for record in caplog.records if "first 1.2 and by second 1.2" in record.message]


def test_nobody_takes_a_name_of_ours(site, caplog):
    install_package(site, "taken", METHOD.replace('"nearest"', '"mesa"'), {"mesa": "taken:Nearest"})
    assert mesa_lm.available_methods()["mesa"] is mesa_lm.Mesa
    assert type(mesa_lm.make_method("mesa")) is mesa_lm.Mesa
    (record,) = caplog.records
    assert "method 'mesa' of taken 1.2 is left out" in record.message


def run(site, *command):
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


def test_the_command_lists_methods_of_packages(tmp_path):
    install_package(tmp_path, "nearest_paper", METHOD, {"nearest": "nearest_paper:Nearest"})
    install_package(tmp_path, "broken", "1 / 0", {"broken": "broken:Broken"})
    done = run(tmp_path, "-m", "mesa_lm", "methods", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["nearest"]["source"] == "a paper to be."
    assert done.stderr.count("\n") == 1 and "method 'broken' of broken 1.2 cannot be used" in done.stderr


@pytest.mark.slow
def test_lm_eval_runs_a_method_of_a_package(tmp_path):
    install_package(tmp_path, "nearest_paper", METHOD, {"nearest": "nearest_paper:Nearest"})
    arguments = ["--model_args", "method=nearest,keys=300", "--tasks", "passkey_long_1k", "--limit", "1"]
    done = run(tmp_path, "-m", "lm_eval", "--model", "mesa-hf", *arguments, "--output_path", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    (results,) = (tmp_path / "out").rglob("results_*.json")
    about = json.loads(results.read_text())["config"]["mesa_lm"]
    assert (about["method"], about["parameters"], about["method_from"]) == (
        "nearest",
        {"keys": 300},
        "nearest_paper 1.2",
    )
