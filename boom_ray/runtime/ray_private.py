"""The private API of Ray that boom-ray uses; `tests/runtime/test_ray_private.py` fails when it moves."""

from ray._private.services import find_bootstrap_address


def last_address() -> str | None:
    """Address of the last cluster started on this machine, where `ray.init()` without an address connects.

    Ray has no public function for it. None if no cluster was started, or `ray stop` ended the last one.
    """
    return find_bootstrap_address(None)
