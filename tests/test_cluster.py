"""The cluster files, checked without a cluster: Ray and Kubernetes accept them, and their commands parse."""

import json
import os
import re
import shlex
import shutil
import subprocess
import venv
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import boto3
import kubernetes_validate
import promql_parser
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.aws.config import _configure_from_network_interfaces
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.serve.schema import ServeDeploySchema
from ray.util.metrics import Histogram, Metric

from boom_ray import cli
from boom_ray.embed.metrics import EmbedMetrics
from boom_ray.merge.merge_metrics import MergeMetrics
from boom_ray.serve import build
from boom_ray.serve.metrics import EncoderMetrics, QueueMetrics, RequestMetrics
from boom_ray.serve.serve_settings import ServeSettings
from boom_ray.train.metrics_log import MetricsLog

ROOT = Path(__file__).parent.parent
CONSTRAINTS = "cluster/constraints.txt"
#: The files that `pip install .` and jobs need.
PROJECT = {"pyproject.toml", "README.md", "LICENSE", "boom_ray", "jobs", CONSTRAINTS}
MANIFESTS = ["raycluster", "rayjob", "rayservice", "networkpolicy"]
FILES = ["cluster.yaml", "cluster/Dockerfile", "cluster/README.md", "README.md"]
FILES += [f"cluster/kuberay/{name}.yaml" for name in MANIFESTS]
KUBERNETES = "1.33"


def pinned(package: str) -> str:
    versions = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / CONSTRAINTS).read_text(), re.MULTILINE))
    return versions[package]


# ── ray up ─────────────────────────────────────────────────────────────────────────────────────────


def yaml_of_the_readme() -> list[dict[str, Any]]:
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "cluster/README.md").read_text(), re.M | re.S)
    return list(map(yaml.safe_load, blocks))


def launcher(provider: str) -> dict[str, Any]:
    """`cluster.yaml` as prepared by Ray, with the keys that cluster/README.md lists for a provider."""
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    changed = {keys["provider"]["type"]: keys for keys in yaml_of_the_readme() if "provider" in keys}
    if provider == "local":
        for key in ("head_node_type", "available_node_types", "max_workers"):
            del config[key]
    return prepare_config(config | changed.get(provider, {}))


@pytest.mark.parametrize("provider", ["aws", "gcp", "local"])
def test_ray_accepts_the_configuration_of_every_provider(provider: str) -> None:
    config = launcher(provider)
    validate_config(config)
    assert config["provider"]["type"] == provider


def refused_by_aws(node: dict[str, Any]) -> str:
    """Why EC2's API would refuse to start such a node, as far as its published model of a request tells."""
    client = boto3.client("ec2", region_name="us-west-2")
    request = client.meta.service_model.operation_model("RunInstances").input_shape
    counts = {"MinCount": 1, "MaxCount": 1}
    return ParamValidator().validate(node | counts, request).generate_report()


def test_aws_accepts_every_node_also_with_efa() -> None:
    [efa] = [keys for keys in yaml_of_the_readme() if "NetworkInterfaces" in keys]
    config = launcher("aws")
    nodes = {name: one["node_config"] for name, one in config["available_node_types"].items()}
    for node in nodes.values():
        assert refused_by_aws({key: value for key, value in node.items() if key != "SubnetIds"}) == ""
    nodes["gpu_spot"] |= efa
    validate_config(config)
    found = _configure_from_network_interfaces(config)["available_node_types"]["gpu_spot"]["node_config"]
    assert len(found["SubnetIds"]) == len(found["SecurityGroupIds"]) == 4
    cards = [(card["NetworkCardIndex"], card["DeviceIndex"]) for card in efa["NetworkInterfaces"]]
    assert cards == [(0, 0), (1, 1), (2, 1), (3, 1)]
    assert refused_by_aws(nodes["gpu_spot"]) == ""
    assert "NetworkCard" in refused_by_aws(nodes["gpu_spot"] | {"NetworkInterfaces": [{"NetworkCard": 0}]})


def test_ray_refuses_unknown_keys() -> None:
    config = launcher("aws")
    config["available_node_types"]["cpu"]["spot"] = True
    with pytest.raises(Exception, match="'spot' was unexpected"):
        validate_config(config)


def launched(config: dict[str, Any], demand: dict[str, int], missing: str = "") -> dict[str, int]:
    """Node types that Ray's autoscaler starts for 12 tasks; starts of type `missing` have just failed."""
    read = AutoscalingConfig(config, skip_content_hash=True)
    requests = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(demand)] * 12)
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=read.get_node_type_configs(),
            resource_requests=requests,
            recoverable_resource_availabilities={missing: 0.0},
        )
    )
    assert not reply.infeasible_resource_requests
    return {request.instance_type: request.count for request in reply.to_launch}


@pytest.mark.parametrize("provider", ["aws", "gcp", "kuberay"])
def test_spot_gpus_come_before_on_demand_and_cpu_tasks_start_cpu_nodes(provider: str) -> None:
    if provider == "kuberay":
        manifest = read_manifest("raycluster")
        manifest["metadata"]["namespace"] = "default"
        config = _derive_autoscaling_config_from_ray_cr(manifest)
        validate_config(config)
    else:
        config = launcher(provider)
    spot, on_demand = (
        ("gpu-spot", "gpu-on-demand") if provider == "kuberay" else ("gpu_spot", "gpu_on_demand")
    )
    if provider == "aws":  # for which Ray queries the resources of an instance type
        for name in (spot, on_demand):
            config["available_node_types"][name]["resources"] = {"CPU": 48, "GPU": 4}
        config["available_node_types"]["cpu"]["resources"] = {"CPU": 16}
    per_node = config["available_node_types"][spot]["resources"]["GPU"]
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert launched(config, {"GPU": per_node})[spot] == 8
    assert launched(config, {"GPU": per_node}) == {spot: 8, on_demand: 4}
    assert launched(config, {"GPU": per_node}, missing=spot)[on_demand] == 8
    assert launched(config, {"CPU": 1}) == {"cpu": 1}


def test_every_node_starts_with_token_authentication() -> None:
    for provider in ("aws", "gcp", "local"):
        config = launcher(provider)
        assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
        for role in ("head", "worker"):
            [start] = [command for command in config[f"{role}_start_ray_commands"] if "ray start" in command]
            assert start.startswith("export RAY_AUTH_MODE=token ")
            assert " BAD_RUNTIME_ENV_CACHE_TTL_SECONDS=10;" in start
            assert ("--dashboard-host=127.0.0.1" in start) == (role == "head")


def test_nodes_receive_and_install_the_project() -> None:
    config = launcher("aws")
    sources = {path for path in config["file_mounts"].values() if not path.startswith("~")}
    assert sources >= PROJECT
    assert [path for path in sorted(sources) if not (ROOT / path).exists()] == []
    assert all(config["file_mounts"][f"~/boom-ray/{path}"] == path for path in sources)
    installs = [
        command
        for command in config["setup_commands"]
        if "pip install" in command and f"--constraint {CONSTRAINTS}" in command
    ]
    assert len(installs) == 1 and installs[0].startswith("cd ~/boom-ray && ")


# ── KubeRay ────────────────────────────────────────────────────────────────────────────────────────


def read_manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / f"cluster/kuberay/{name}.yaml").read_text())


def clusters() -> dict[str, dict[str, Any]]:
    spec = read_manifest("rayservice")["spec"]
    return {"raycluster": read_manifest("raycluster")["spec"], "rayservice": spec["rayClusterConfig"]}


def groups() -> Iterator[tuple[dict[str, Any], bool]]:
    """Every group of pods, and whether it is the head group."""
    for cluster in clusters().values():
        yield cluster["headGroupSpec"], True
        yield from ((group, False) for group in cluster["workerGroupSpecs"])


def test_clusters_have_token_authentication_and_an_autoscaler() -> None:
    for cluster in clusters().values():
        assert cluster["rayVersion"] == pinned("ray")
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["enableInTreeAutoscaling"] is True and cluster["autoscalerOptions"]["version"] == "v2"
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert any(
            int(group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0))
            for group in cluster["workerGroupSpecs"]
        )


def test_pods_have_shared_memory_and_groups_for_training_whole_nodes() -> None:
    for group, _ in groups():
        pod = group["template"]["spec"]
        [volume] = [volume for volume in pod["volumes"] if volume["name"] == "shm"]
        assert volume["emptyDir"]["medium"] == "Memory"
        assert {"name": "shm", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
    for group in clusters()["raycluster"]["workerGroupSpecs"][:2]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert int(limits["nvidia.com/gpu"]) == 8


def test_pods_match_the_schema_of_kubernetes() -> None:
    for group, _ in groups():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)
        pod["spec"] = pod["spec"] | {"toleration": []}
        with pytest.raises(kubernetes_validate.ValidationError, match="toleration"):
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_the_network_policy_restricts_clients_and_ports() -> None:
    policy = read_manifest("networkpolicy")
    kubernetes_validate.validate(policy, KUBERNETES, strict=True)
    among_nodes, *others = policy["spec"]["ingress"]
    assert among_nodes["from"] == [{"podSelector": policy["spec"]["podSelector"]}]
    assert all(rule["from"] and rule["ports"] for rule in others)


def test_pods_have_least_privileges() -> None:
    for group, is_head in groups():
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
        assert pod.get("automountServiceAccountToken", True) is is_head
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
    for cluster in clusters().values():
        assert cluster["autoscalerOptions"]["securityContext"]["allowPrivilegeEscalation"] is False


def test_pods_have_limits_probes_and_credentials_by_reference() -> None:
    for group, _ in groups():
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        assert {"livenessProbe", "readinessProbe"} <= container.keys()
        assert {name for source in container["envFrom"] for name in source} == {"secretRef"}
        assert "env" not in container
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}


def parsed(command: str) -> tuple[str, dict[str, Any]]:
    """The verb of a command, and its parsed arguments."""
    program, *words = shlex.split(command)
    if program == "python":
        assert (ROOT / words[0]).is_file()
        words[0] = Path(words[0]).stem
    verb = cli.main.commands[words[0]]
    return words[0], verb.make_context(words[0], words[1:], resilient_parsing=False).params


def test_jobs_run_update_and_embed_on_the_cluster() -> None:
    text = (ROOT / "cluster/kuberay/rayjob.yaml").read_text()
    job, cluster = read_manifest("rayjob")["spec"], read_manifest("raycluster")
    assert job["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    commands = dict(map(parsed, re.findall(r"^  (?:# )?entrypoint: (.*)$", text, re.MULTILINE)))
    assert commands.keys() == {"run", "update", "embed"}
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]
    mounts = {mount["mountPath"]: mount["name"] for mount in head["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in head["volumes"]}
    for verb in ("run", "update"):
        assert commands[verb]["storage_uri"].startswith("s3://")
        assert "configMap" in volumes[mounts[os.path.dirname(commands[verb]["recipe"])]]


def test_the_service_equals_the_output_of_config_out(published_qwen3: str, tmp_path: Path) -> None:
    text = (ROOT / "cluster/kuberay/rayservice.yaml").read_text()
    _, arguments = parsed(re.search(r"^  # (boom-ray serve .*)$", text, re.MULTILINE)[1])
    settings = ServeSettings(**{field.name: arguments[field.name] for field in fields(ServeSettings)})
    build.write_config(
        [published_qwen3], settings, arguments["host"], arguments["port"], str(tmp_path / "serve.yaml")
    )
    written = yaml.safe_load((tmp_path / "serve.yaml").read_text())
    shipped = yaml.safe_load(read_manifest("rayservice")["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(shipped)
    [uri] = arguments["models"]
    name = build.describe([published_qwen3])[0].application
    as_shipped = (
        json.dumps(written).replace(published_qwen3, uri).replace(name, shipped["applications"][0]["name"])
    )
    assert json.loads(as_shipped) == shipped


def test_the_service_has_a_port_a_key_and_gpus_for_its_encoders() -> None:
    spec = read_manifest("rayservice")["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    [gpu] = spec["rayClusterConfig"]["workerGroupSpecs"]
    [container] = gpu["template"]["spec"]["containers"]
    port = config["http_options"]["port"]
    assert {"containerPort": port, "name": "serve"} in container["ports"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": port}
    assert "boom-ray-keys" in {source["secretRef"]["name"] for source in container["envFrom"]}
    settings = config["applications"][0]["args"]["settings"]
    assert (gpu["minReplicas"], gpu["maxReplicas"]) == (settings["min_replicas"], settings["max_replicas"])


# ── The image ──────────────────────────────────────────────────────────────────────────────────────


def test_the_image_contains_all_files_that_installation_and_jobs_read() -> None:
    dockerfile = (ROOT / "cluster/Dockerfile").read_text()
    copies = [shlex.split(arguments) for instruction, arguments in steps() if instruction == "COPY"]
    copied = [source for *sources, _ in copies for source in sources]
    assert [path for path in copied if not (ROOT / path).exists()] == []
    assert set(copied) >= PROJECT
    assert dockerfile.count("pip install") == dockerfile.count(f"--constraint {CONSTRAINTS}")
    assert re.search(r"^USER [1-9]\d*$", dockerfile, re.MULTILINE), "the image must not run as root"
    assert re.search(r"^ENV .*\bRAY_AUTH_MODE=token BAD_RUNTIME_ENV_\w+=10$", dockerfile, re.MULTILINE)


def steps() -> Iterator[tuple[str, str]]:
    """The instructions of the Dockerfile with their arguments."""
    text = re.sub(r"^#.*\n", "", (ROOT / "cluster/Dockerfile").read_text(), flags=re.MULTILINE)
    for line in text.replace("\\\n", " ").splitlines():
        instruction, _, arguments = line.partition(" ")
        yield instruction, arguments


#: mteb is optional, and not part of the image.
IMPORT_ALL = """
import importlib, pkgutil, boom_ray
for module in pkgutil.walk_packages(boom_ray.__path__, 'boom_ray.'):
    if 'mteb' not in module.name and not module.name.endswith('__main__'):
        importlib.import_module(module.name)
print(boom_ray.__file__)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_steps_of_the_image_install_the_project(tmp_path: Path) -> None:
    """In a virtual environment without system packages; `apt-get` steps are left out."""
    root = tmp_path / "boom-ray"
    venv.create(tmp_path / "venv", with_pip=True)
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    variables = pip | {"PATH": f"{tmp_path}/venv/bin:{os.defpath}", "HOME": str(tmp_path)}

    def run(command: str) -> str:
        done = subprocess.run(command, shell=True, cwd=root, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for instruction, arguments in steps():
        if instruction == "COPY":
            *sources, target = shlex.split(arguments)
            for source in sources:
                (root / target).mkdir(parents=True, exist_ok=True)
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, root / target, dirs_exist_ok=True)
                else:
                    shutil.copy(ROOT / source, root / target)
        elif instruction == "RUN" and arguments.startswith("python "):
            run(arguments)
    assert "Usage: boom-ray" in run("boom-ray --help")
    assert run(f'cd / && python -c "{IMPORT_ALL}"').startswith(f"{tmp_path}/venv")


@pytest.mark.parametrize("path", FILES)
def test_files_contain_no_secrets(path: str) -> None:
    text = (ROOT / path).read_text()
    assert re.findall(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\b[0-9a-f]{32,}\b|-----BEGIN", text) == []
    assert re.findall(r"(?i)(?:secret\w*|token|password)\"?[=:] *\"?[\w/+]{16,}", text) == []


# ── Grafana ────────────────────────────────────────────────────────────────────────────────────────


def own_metrics() -> dict[str, set[str]]:
    """Labels of every metric of boom-ray, by its name in Prometheus."""
    serving = [RequestMetrics(), EncoderMetrics("v", 1), QueueMetrics("v", "encoder")]
    owners = [*serving, MergeMetrics("m"), EmbedMetrics("o")]
    metrics = [one for owner in owners for one in vars(owner).values() if isinstance(one, Metric)]
    metrics += MetricsLog({"run": "r", "bag": "b"}).gauges.values()
    names = [f"ray_{metric.info['name']}" for metric in metrics]
    return {
        f"{name}_bucket" if isinstance(metric, Histogram) else name: set(metric.info["tag_keys"])
        for name, metric in zip(names, metrics, strict=True)
    }


def nodes(expression: Any) -> Iterator[Any]:
    """A parsed expression and all expressions in it."""
    yield expression
    for part in ("expr", "lhs", "rhs", "vector_selector"):
        if hasattr(expression, part):
            yield from nodes(getattr(expression, part))
    for argument in getattr(expression, "args", []):
        yield from nodes(argument)


def dashboards() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in (ROOT / "cluster/grafana").glob("*.json")}


def test_every_metric_has_a_panel_and_every_panel_uses_existing_metrics() -> None:
    existing, shown = own_metrics(), set[str]()
    for dashboard in dashboards().values():
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                parts = list(nodes(promql_parser.parse(target["expr"])))
                names = {part.name for part in parts if isinstance(part, promql_parser.VectorSelector)}
                assert names <= existing.keys()
                groups = [part.modifier for part in parts if isinstance(part, promql_parser.AggregateExpr)]
                labels = {label for group in groups if group for label in group.labels}
                labels |= set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
                assert labels <= set.union(*(existing[name] for name in names)) | {"le"}
                shown |= names
    assert shown == existing.keys()


def test_grafana_can_import_the_dashboards() -> None:
    found = dashboards()
    assert len({dashboard["uid"] for dashboard in found.values()}) == len(found) == 4
    for dashboard in found.values():
        assert dashboard["schemaVersion"] >= 36 and dashboard["templating"]["list"][0]["type"] == "datasource"
        panels = dashboard["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        positions = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
        assert positions == {(12 * (n % 2), 8 * (n // 2)) for n in range(len(panels))}
        for panel in panels:
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert (panel["gridPos"]["w"], panel["gridPos"]["h"]) == (12, 8)
            references = [target["refId"] for target in panel["targets"]]
            assert len(set(references)) == len(references) > 0
