"""Checkpoints of one bag: complete, or invisible.

Every rank stores its own files under `step-…/`; when all have, rank 0 writes `complete.json`, which lists
every file with its size. A checkpoint without it, or with a file that is missing or short, is never resumed
from: DeepSpeed alone would take such a directory for a cold start.
"""

import json
from typing import Any

from boom_ray import storage

COMPLETE = "complete.json"


def location(root: str, step: int) -> str:
    """URI of the checkpoint after `step` optimizer steps."""
    return storage.join(root, f"step-{step:08d}")


def seal(uri: str, state: dict[str, Any]) -> None:
    """Declare a checkpoint complete, with the training state that is not DeepSpeed's."""
    files = {name: info.size for name, info in storage.list_files(uri).items()}
    storage.write_bytes(storage.join(uri, COMPLETE), json.dumps({"state": state, "files": files}).encode())


def newest(root: str) -> tuple[str, dict[str, Any]] | None:
    """URI and state of the newest complete checkpoint, or None."""
    for name in sorted(storage.list_names(root), reverse=True):
        uri = storage.join(root, name)
        if not storage.is_file(storage.join(uri, COMPLETE)):
            continue
        record = json.loads(storage.read_bytes(storage.join(uri, COMPLETE)))
        present = storage.list_files(uri)
        if all(file in present and present[file].size == size for file, size in record["files"].items()):
            return uri, record["state"]
        print(f"{uri}: incomplete, not used", flush=True)
    return None


def prune(root: str) -> None:
    """Delete all checkpoints but the newest two: the older serves if the newer is damaged."""
    for name in storage.list_names(root)[:-2]:
        storage.delete_tree(storage.join(root, name))
