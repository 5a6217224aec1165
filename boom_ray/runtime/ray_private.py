"""The private API of Ray that boom-ray uses; `tests/runtime/test_ray_private.py` fails when it moves."""

import functools
import json
import os
import re
from collections import Counter
from typing import Any

import psutil
import ray
import yaml
from ray._private import ray_constants, worker
from ray._private.services import find_bootstrap_address
from ray.experimental.internal_kv import _internal_kv_get

# Fractional CPUs are intended: a warning for each further two processes says nothing that can be done.
NOT_SHOWN = re.compile(r"WARNING: \d+ \w+ worker processes have been started")
KUBERNETES_NAMESPACE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"


def last_address() -> str | None:
    """Address of the last cluster started on this machine, where `ray.init()` without an address connects.

    Ray has no public function for it. None if no cluster was started, or `ray stop` ended the last one.
    """
    return find_bootstrap_address(None)


@functools.cache
def hide_process_counts() -> None:
    """Keep the warnings of Ray's daemons about the number of processes from the terminal.

    The thread that listens to the daemons prints all of their messages; Ray has no public filter for it.
    """
    print_message = worker.print_to_stdstream

    def print_others(data: dict[str, Any], ignore_prefix: bool) -> None:
        lines = [line for line in data["lines"] if not NOT_SHOWN.search(line)]
        if lines:
            print_message(data | {"lines": lines}, ignore_prefix)

    worker.print_to_stdstream = print_others


def autoscaling_config() -> dict[str, Any] | None:
    """The configuration of the autoscaler of the connected cluster, read on its head node.

    Ray publishes it nowhere. It is in the file on the command line of the autoscaler (the "monitor"), which
    runs on the head; or with KubeRay, where that is in another container, in the RayCluster.

    Returns:
        None if the cluster has no autoscaler.

    Raises:
        OSError: if the file or the RayCluster cannot be read.
    """
    command = monitor_command()
    if command is None:
        name = os.environ.get("RAY_CLUSTER_NAME")  # set by KubeRay
        return _kuberay_config(name) if name else None
    option = "--autoscaling-config="
    path = next((word.removeprefix(option) for word in command if word.startswith(option)), None)
    if path is None:
        return None
    with open(os.path.expanduser(path), encoding="utf-8") as file:
        config: dict[str, Any] = yaml.safe_load(file)
    return config


def monitor_command() -> list[str] | None:
    """The command line of the monitor of the connected cluster; None if it does not run on this machine."""
    assert worker._global_node is not None, "this process is connected to Ray"
    logs = f"--logs-dir={worker._global_node.get_logs_dir_path()}"
    for process in psutil.process_iter(["cmdline"]):
        line: list[str] = process.info["cmdline"] or []
        if logs in line and any(os.path.basename(word) == "monitor.py" for word in line):
            return line
    return None


def _kuberay_config(cluster: str) -> dict[str, Any]:
    """The configuration that KubeRay's autoscaler derives from the RayCluster, with the same rights."""
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider

    with open(KUBERNETES_NAMESPACE, encoding="utf-8") as file:
        client = node_provider.KubernetesHttpApiClient(file.read().strip())
    found: dict[str, Any] = autoscaling_config._derive_autoscaling_config_from_ray_cr(
        client.get(f"rayclusters/{cluster}")
    )
    return found


def autoscaler_report() -> tuple[Counter[str], dict[str, str]]:
    """What the autoscaler of the connected cluster does.

    Returns:
        Nodes that it has requested or that are starting, by type; and for each type whose last start failed,
        the reason.
    """
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    if not is_autoscaler_v2(fetch_from_server=True):
        return report_of_v1(json.loads(_internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS) or "{}"))
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    starting = Counter(node.ray_node_type_name for node in status.pending_nodes)
    for launch in status.pending_launches:
        starting[launch.ray_node_type_name] += launch.count
    failed = sorted(status.failed_launches, key=lambda launch: launch.failed_ts_s or 0)
    return starting, {launch.ray_node_type_name: str(launch.details) for launch in failed}


def report_of_v1(status: dict[str, Any]) -> tuple[Counter[str], dict[str, str]]:
    """The same of the autoscaler's first version, from the status that it stores for `ray status`."""
    report = status.get("autoscaler_report") or {}
    starting = Counter(report.get("pending_launches", {}))
    starting.update(node_type for _, node_type, _ in report.get("pending_nodes", []))
    types = report.get("node_availability_summary", {}).get("node_availabilities", {})
    reasons = {name: one["unavailable_node_information"] for name, one in types.items()}
    return starting, {
        name: f"{one['category']}: {one['description']}" for name, one in reasons.items() if one
    }
