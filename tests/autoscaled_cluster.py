"""A cluster of Ray's own autoscaler on this machine: a head without CPUs, and nodes that start on demand.

The nodes are those of a shipped configuration, scaled down; Ray's `FakeMultiNodeProvider` starts them as
processes of this machine. They have GPUs for Ray, but none for torch.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_nodes

from boom_ray.runtime.node_types import LABEL
from tests.object_store import free_ports
from tests.test_jobs import await_end, head_node, patiently

ROOT = Path(__file__).parents[1]
ACCELERATOR = "accelerator_type:A10G"  # a resource of nodes with a GPU that a process without one can ask for
IDLE_SECONDS = 15
OBJECT_STORE = 100_000_000


@dataclass(frozen=True)
class AutoscaledCluster:
    """A running cluster.

    Attributes:
        client: Submits jobs.
        address: `host:port` for drivers.
    """

    client: JobSubmissionClient
    address: str

    def job(self, entrypoint: str) -> tuple[JobStatus, str]:
        """Submit a job that runs in the repository, and await its end; status and log."""
        job = self.start(entrypoint)
        return await_end(self.client, job), self.client.get_job_logs(job)

    def start(self, entrypoint: str) -> str:
        """Submit a job; returns its id."""
        # Fake nodes share one directory of uploaded packages, and delete those of jobs that still run.
        return patiently(lambda: self.client.submit_job(entrypoint=f"cd {ROOT} && {entrypoint}"))

    def nodes(self, alive: bool) -> Counter[str]:
        """Live nodes, or all there have been, by their type; without the head."""
        found = list_nodes(address=self.client.get_address(), detail=True, limit=1000)
        return Counter(
            node.labels[LABEL]
            for node in found
            if not node.is_head_node and (not alive or node.state == "ALIVE")
        )

    def await_no_nodes(self, seconds: float = 120) -> None:
        """Wait until all nodes have gone away."""
        deadline = time.monotonic() + seconds
        while found := self.nodes(alive=True):
            assert time.monotonic() < deadline, f"nodes stay: {dict(found)}"
            time.sleep(1)


def ray_up_types() -> dict[str, Any]:
    """The node types of `cluster.yaml`, with the resources that Ray fills in on AWS."""
    types = yaml.safe_load((ROOT / "cluster.yaml").read_text())["available_node_types"]
    for name, one in types.items():
        if name != "head":
            one["resources"] = {"CPU": 48, "GPU": 4, ACCELERATOR: 1} if "gpu" in name else {"CPU": 16}
    return types


def kuberay_types() -> dict[str, Any]:
    """The node types that KubeRay's autoscaler derives from `raycluster.yaml`."""
    manifest = yaml.safe_load((ROOT / "cluster/kuberay/raycluster.yaml").read_text())
    manifest["metadata"]["namespace"] = "default"
    return _derive_autoscaling_config_from_ray_cr(manifest)["available_node_types"]


def scaled_down(types: Mapping[str, Any], address: str) -> dict[str, Any]:
    """A configuration of `fake_multinode` with these types: two of each, of two CPUs and one GPU."""
    found = {}
    for name, one in types.items():
        resources = {key: min(amount, 2 if key == "CPU" else 1) for key, amount in one["resources"].items()}
        resources = {"object_store_memory": OBJECT_STORE} | resources
        resources.pop("memory", None)  # that of this machine
        is_head = name in ("head", "headgroup")
        found[FAKE_HEAD_NODE_TYPE if is_head else name] = {
            "resources": resources,
            "labels": {} if is_head else {LABEL: name},  # which Ray sets itself on nodes of their own
            "node_config": {},
            "max_workers": 0 if is_head else 2,
            "priority": one.get("priority", 0),
        }
    return {
        "cluster_name": "demand",
        "max_workers": 2,
        "idle_timeout_minutes": IDLE_SECONDS / 60,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "external",  # `fake_multinode` reads a file that the wheel of Ray lacks
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": found,
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        **{f"{part}_commands": [] for part in ("initialization", "setup", "head_setup", "worker_setup")},
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


@contextmanager
def autoscaled_cluster(
    types: Mapping[str, Any], folder: Path, version: int = 2
) -> Iterator[AutoscaledCluster]:
    """A cluster with zero workers.

    Args:
        types: Node types of a configuration, which are scaled down.
        folder: For the configuration.
        version: Of Ray's autoscaler: 2, as `ray up` and KubeRay start it, or 1.
    """
    [port] = free_ports(1)
    address = f"{ray.util.get_node_ip_address()}:{port}"
    config = folder / "autoscaling.yaml"
    config.write_text(json.dumps(scaled_down(types, address)))
    variables = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_enable_autoscaler_v2": str(version - 1),
        "RAY_worker_niceness": "0",
    }
    options = [f"--autoscaling-config={config}", f"--object-store-memory={OBJECT_STORE}"]
    with head_node(*options, port=port, num_cpus=0, **variables) as client:
        yield AutoscaledCluster(client, address)
