"""The cluster files are well formed, and what they call exists."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter
from typer.main import get_command

from mesa_lm.cli import main as cli

# Fields and types of KubeRay's API ray.io/v1: rayjob_types.go, raycluster_types.go of github.com/ray-project/kuberay.
# Pods are Kubernetes' own. The API server refuses other types and drops unknown fields silently.
POD = dict[str, Any]
WORKERS = {"groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int}
WORKERS |= {"numOfHosts": int, "rayStartParams": dict[str, str], "template": POD}
HEAD = {"serviceType": str, "enableIngress": bool, "rayStartParams": dict[str, str], "template": POD}
CLUSTER = {"rayVersion": str, "enableInTreeAutoscaling": bool, "suspend": bool}
CLUSTER |= {"headGroupSpec": HEAD, "workerGroupSpecs": [WORKERS]}
JOB = {"entrypoint": str, "runtimeEnvYAML": str, "backoffLimit": int, "activeDeadlineSeconds": int, "suspend": bool}
JOB |= {"submissionMode": str, "shutdownAfterJobFinishes": bool, "ttlSecondsAfterFinished": int}
JOB |= {"rayClusterSpec": CLUSTER, "submitterPodTemplate": POD, "clusterSelector": dict[str, str]}

FOLDER = Path(cli.__file__).parents[1] / "pipelines" / "cluster"


def test_ray_accepts_its_cluster_file():
    util = pytest.importorskip("ray.autoscaler._private.util")
    pytest.importorskip("jsonschema")
    util.validate_config(util.prepare_config(yaml.safe_load((FOLDER / "ray.yaml").read_text())))


def test_the_nightly_job_of_kubernetes():
    documents = {d["kind"]: d for d in yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text())}
    job = yaml.safe_load(documents["ConfigMap"]["data"]["rayjob.yaml"])
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups}
    assert len(images) == 1
    pod = documents["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == documents["ServiceAccount"]["metadata"]["name"]
    assert pod["volumes"][0]["configMap"]["name"] == documents["ConfigMap"]["metadata"]["name"]
    assert documents["Role"]["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}
    ]


def check_fields(found, allowed, where):
    if isinstance(allowed, list):
        for i, item in enumerate(found):
            check_fields(item, allowed[0], f"{where}[{i}]")
    elif isinstance(allowed, dict):
        assert found.keys() <= allowed.keys(), where
        for name, value in found.items():
            check_fields(value, allowed[name], f"{where}.{name}")
    else:
        TypeAdapter(allowed).validate_python(found, strict=True)


def test_the_ray_job_has_the_fields_of_kuberays_api():
    documents = {d["kind"]: d for d in yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text())}
    job = yaml.safe_load(documents["ConfigMap"]["data"]["rayjob.yaml"])
    check_fields(job["spec"], JOB, "spec")
    cluster = job["spec"]["rayClusterSpec"]
    assert {"rayStartParams", "template"} <= cluster["headGroupSpec"].keys()
    for group in cluster["workerGroupSpecs"]:
        assert {"groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"} <= group.keys()
    assert job["spec"]["shutdownAfterJobFinishes"]  # ttlSecondsAfterFinished has no effect without


def test_the_slurm_script_is_bash():
    script = FOLDER / "nightly.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    options = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert options and all(re.fullmatch(r"#SBATCH --[\w-]+(=\S+)?", line) for line in options)


def test_the_crontab_has_five_fields_and_escapes_percent_signs():
    lines = [line for line in (FOLDER / "crontab").read_text().splitlines() if line and not line.startswith("#")]
    schedule = lines[-1].split()[:5]
    assert len(schedule) == 5 and all(re.fullmatch(r"[\d*/,-]+", part) for part in schedule)
    assert not re.search(r"(?<!\\)%", lines[-1])  # cron ends a command there


@pytest.mark.parametrize("name", ["kuberay.yaml", "nightly.sbatch", "crontab"])
def test_every_command_and_option_exists(name):
    text = (FOLDER / name).read_text()
    commands = re.findall(r"^(?!#).*?(mesa-lm [^>;\n]*)", text, flags=re.MULTILINE)
    assert [command.split()[1] for command in commands if command.split()[1] != "nightly.yaml"] == ["nightly"]
    known = get_command(cli.app).commands
    for command in commands:
        _, verb, *arguments = shlex.split(command)
        options = {option for parameter in known[verb].params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= options, command
