"""Local directories for what is on its way to storage; what killed processes left in them is swept up."""

import os
import re
import shutil
import tempfile

from boom_ray.runtime import processes

NAME = re.compile(r"boom-ray-[a-z]+-(?P<owner>.+-\d+-\d+)-\w+")


def directory(purpose: str) -> str:
    """A new directory of this process, which deletes it when it is done.

    A checkpoint is larger than the model: those of killed ranks would fill the disk.

    Args:
        purpose: A word for its name.
    """
    root = tempfile.gettempdir()
    for entry in os.listdir(root):
        match = NAME.fullmatch(entry)
        if match and processes.has_ended(match["owner"]):
            shutil.rmtree(os.path.join(root, entry), ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"boom-ray-{purpose}-{processes.own_name()}-")
