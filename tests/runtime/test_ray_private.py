"""The private API of Ray that boom-ray uses has the signature and the effect that it relies on."""

import dataclasses
import inspect
import json

from ray._private import worker
from ray._private.services import find_bootstrap_address
from ray.autoscaler._private.autoscaler import AutoscalerSummary
from ray.autoscaler._private.node_provider_availability_tracker import (
    NodeAvailabilityRecord,
    NodeAvailabilitySummary,
    UnavailableNodeInformation,
)
from ray.autoscaler.v2.schema import ClusterStatus, LaunchRequest, NodeInfo

from boom_ray.runtime.ray_private import (
    autoscaling_config,
    hide_process_counts,
    last_address,
    monitor_command,
    report_of_v1,
)

COUNT = "WARNING: 8 PYTHON worker processes have been started on node: 5 with address: 10.0.0.1, which is 4x"


def test_the_last_address_is_read_from_the_file_that_ray_start_writes(tmp_path, monkeypatch):
    assert list(inspect.signature(find_bootstrap_address).parameters) == ["temp_dir"]
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert last_address() is None
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379\n")
    assert last_address() == "10.0.0.1:6379"


def test_counts_of_processes_are_not_printed_and_other_messages_are(capsys):
    hide_process_counts()
    assert "print_to_stdstream" in worker.listen_error_messages.__code__.co_names
    for line in (COUNT, "a worker was killed: out of memory"):
        worker.print_to_stdstream({"lines": [line], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    printed = capsys.readouterr().out
    assert "out of memory" in printed and "worker processes" not in printed


def test_a_cluster_without_an_autoscaler_has_a_monitor_without_a_configuration(ray_cluster):
    command = monitor_command()
    assert command is not None and not any("autoscaling-config" in word for word in command)
    assert autoscaling_config() is None


def test_the_status_of_the_second_autoscaler_has_the_fields_that_are_read():
    names = {field.name for field in dataclasses.fields(LaunchRequest)}
    assert names >= {"ray_node_type_name", "count", "failed_ts_s", "details"}
    assert {field.name for field in dataclasses.fields(NodeInfo)} >= {"ray_node_type_name"}
    status = {field.name for field in dataclasses.fields(ClusterStatus)}
    assert status >= {"pending_nodes", "pending_launches", "failed_launches"}


def test_the_status_of_the_first_autoscaler_is_read():
    unavailable = UnavailableNodeInformation("InsufficientInstanceCapacity", "no g5.12xlarge")
    records = {
        "gpu_spot": NodeAvailabilityRecord("gpu_spot", False, 0.0, unavailable),
        "cpu": NodeAvailabilityRecord("cpu", True, 0.0, None),
    }
    summary = AutoscalerSummary(
        active_nodes={},
        idle_nodes=None,
        pending_nodes=[("10.0.0.2", "gpu_on_demand", "setting-up")],
        pending_launches={"gpu_on_demand": 2},
        failed_nodes=[],
        node_availability_summary=NodeAvailabilitySummary(records),
    )
    status = json.loads(json.dumps({"autoscaler_report": dataclasses.asdict(summary)}))
    starting, failures = report_of_v1(status)
    assert starting == {"gpu_on_demand": 3}
    assert failures == {"gpu_spot": "InsufficientInstanceCapacity: no g5.12xlarge"}
    assert report_of_v1({}) == ({}, {})
