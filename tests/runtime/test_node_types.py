"""The nodes that an autoscaler may start, by the shipped configurations."""

from collections import Counter
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from boom_ray.runtime.node_types import NodeType, NodeTypes

ROOT = Path(__file__).parents[2]


def of_ray_up() -> NodeTypes:
    """The types of `cluster.yaml`, with the resources that Ray fills in for AWS."""
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    found = {"gpu": {"CPU": 48, "GPU": 4, "accelerator_type:A10G": 1}, "cpu": {"CPU": 16}}
    for name, one in config["available_node_types"].items():
        one["resources"] = one["resources"] or found[name.partition("_")[0]]
    return NodeTypes.of(config)


def of_kuberay() -> NodeTypes:
    manifest = yaml.safe_load((ROOT / "cluster/kuberay/raycluster.yaml").read_text())
    manifest["metadata"]["namespace"] = "default"
    return NodeTypes.of(_derive_autoscaling_config_from_ray_cr(manifest))


def test_the_shipped_configurations_declare_gpus_and_cpus_and_no_more_heads():
    types, pods = of_ray_up(), of_kuberay()
    assert {one.name: one.max_nodes for one in types.types} == {"gpu_on_demand": 8, "gpu_spot": 8, "cpu": 4}
    assert {one.name: one.max_nodes for one in pods.types} == {"gpu-on-demand": 8, "gpu-spot": 8, "cpu": 4}
    assert (types.max_nodes, pods.max_nodes) == (12, 20) and types.are_known and pods.are_known
    gpus = {one.name: (one.resources["CPU"], one.resources["GPU"]) for one in pods.types if "gpu" in one.name}
    assert gpus == {"gpu-spot": (90, 8), "gpu-on-demand": (90, 8)}


@pytest.mark.parametrize(
    ("process", "running", "expected"),
    [
        ({"CPU": 1, "GPU": 1}, {}, {"gpu_on_demand": 8, "gpu_spot": 4}),
        ({"CPU": 1, "GPU": 1}, {"gpu_spot": 5, "cpu": 4}, {"gpu_on_demand": 3, "gpu_spot": 0}),
        ({"CPU": 1, "GPU": 8}, {}, {}),
        ({"CPU": 1}, {}, {"cpu": 4}),
        ({"CPU": 1}, {"gpu_spot": 11}, {"cpu": 1}),
        ({"CPU": 32}, {}, {"gpu_on_demand": 8, "gpu_spot": 4}),
        ({"CPU": 1, "accelerator_type:A10G": 0.001}, {}, {"gpu_on_demand": 8, "gpu_spot": 4}),
    ],
)
def test_nodes_are_counted_within_the_limits_and_work_without_a_gpu_leaves_gpus_alone(
    process, running, expected
):
    found = of_ray_up().startable(process, Counter(running))
    assert {one.name: number for one, number in found} == expected


def test_types_without_stated_resources_are_not_known_and_a_cluster_without_an_autoscaler_has_none():
    config = {"max_workers": 2, "head_node_type": "head", "available_node_types": {"head": {}, "node": {}}}
    assert NodeTypes.of(config) == NodeTypes((NodeType("node", {}, 2),), 2)
    assert not NodeTypes.of(config).are_known and not NodeTypes.of(None).are_known
