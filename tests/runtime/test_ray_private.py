"""The private API of Ray that boom-ray uses has the signature and the effect that it relies on."""

import inspect

from ray._private.services import find_bootstrap_address

from boom_ray.runtime.ray_private import last_address


def test_the_last_address_is_read_from_the_file_that_ray_start_writes(tmp_path, monkeypatch):
    assert list(inspect.signature(find_bootstrap_address).parameters) == ["temp_dir"]
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert last_address() is None
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379\n")
    assert last_address() == "10.0.0.1:6379"
