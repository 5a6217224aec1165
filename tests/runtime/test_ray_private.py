"""The private API of Ray that boom-ray uses has the signature and the effect that it relies on."""

import inspect

from ray._private import worker
from ray._private.services import find_bootstrap_address

from boom_ray.runtime.ray_private import hide_process_counts, last_address

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
