"""The types of nodes that the cluster's autoscaler may start, none of which may be up."""

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from boom_ray.errors import ClusterError
from boom_ray.runtime.resources import fitting

HEAD = "node:__internal_head__"  # a resource that the head node has, and no other
LABEL = "ray.io/node-group"  # the label of a node with the name of its type


@dataclass(frozen=True)
class NodeType:
    """One type of node.

    Attributes:
        name: Its name in the configuration of the cluster.
        resources: Ray resources of a node; empty where the configuration does not state them.
        max_nodes: Nodes of this type that may run at the same time.
    """

    name: str
    resources: Mapping[str, float]
    max_nodes: int


@dataclass(frozen=True)
class NodeTypes:
    """The types of the nodes that an autoscaler may start, in the order of its configuration.

    Attributes:
        max_nodes: Nodes of all types together, without the head.
    """

    types: tuple[NodeType, ...] = ()
    max_nodes: int = 0

    @property
    def are_known(self) -> bool:
        """Whether there is an autoscaler, and the resources of all nodes that it may start are known."""
        return bool(self.types) and all(one.resources for one in self.types)

    @classmethod
    def of(cls, config: Mapping[str, Any] | None) -> "NodeTypes":
        """The types in a configuration of Ray's autoscaler; none without a configuration."""
        if config is None:
            return cls()
        limit, head = config.get("max_workers", 0), config.get("head_node_type")
        declared = (
            NodeType(name, one.get("resources") or {}, one.get("max_workers", 0 if name == head else limit))
            for name, one in config.get("available_node_types", {}).items()
        )
        return cls(tuple(one for one in declared if one.max_nodes), limit)

    def startable(self, process: Mapping[str, float], running: Counter[str]) -> list[tuple[NodeType, int]]:
        """The types whose nodes may be started for processes, and how many of each.

        The types on which most processes fit come first, until the limit of all types together is reached.
        Nodes with GPUs are not started for work without a GPU, if another type suits it.

        Args:
            process: Ray resources of a process.
            running: Nodes that run already, by the name of their type.
        """
        types = [one for one in self.types if fitting(one.resources, process)]
        without_gpus = [one for one in types if not one.resources.get("GPU")]
        if not process.get("GPU") and without_gpus:
            types = without_gpus
        found, left = list[tuple[NodeType, int]](), self.max_nodes - sum(running.values())
        for one in sorted(types, key=lambda one: -fitting(one.resources, process)):
            number = max(0, min(one.max_nodes - running[one.name], left))
            found.append((one, number))
            left -= number
        return found


def declared() -> NodeTypes:
    """The types of the nodes that the autoscaler of the connected cluster may start.

    Raises:
        ClusterError: if its configuration cannot be read.
    """
    import ray  # here, because plans are made without Ray

    return _declared(ray.get_runtime_context().gcs_address)


@functools.cache
def _declared(gcs_address: str) -> NodeTypes:
    """Read once per connection, on the head: only its autoscaler has the configuration."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from boom_ray.runtime import ray_private
    from boom_ray.runtime.cluster import result_of

    heads = [node["NodeID"] for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"]]
    try:
        if not heads or heads[0] == ray.get_runtime_context().get_node_id():
            return NodeTypes.of(ray_private.autoscaling_config())
        task = ray.remote(num_cpus=0)(ray_private.autoscaling_config)
        where = NodeAffinitySchedulingStrategy(heads[0], soft=False)
        return NodeTypes.of(result_of(task.options(scheduling_strategy=where).remote()))
    except (OSError, ray.exceptions.RayTaskError) as error:  # requests' errors are OSErrors
        raise ClusterError(
            f"the autoscaler's configuration cannot be read on the head node: {error}. The head must be able "
            "to read the file that `ray start --autoscaling-config` names, or in KubeRay its RayCluster"
        ) from error
