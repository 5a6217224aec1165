"""Temporary local directories, named after their process; those of killed processes are deleted later."""

import os
import re
import shutil
import tempfile

from boom_ray.runtime import processes

NAME = re.compile(r"boom-ray-[a-z]+-(?P<owner>.+-\d+-\d+)-\w+")


def directory(purpose: str) -> str:
    """A new directory, which the caller deletes. Directories of killed processes are deleted first.

    A model can be large: those of killed processes would fill the disk.

    Args:
        purpose: A word for the directory's name.
    """
    root = tempfile.gettempdir()
    for entry in os.listdir(root):
        match = NAME.fullmatch(entry)
        if match and processes.has_ended(match["owner"]):
            shutil.rmtree(os.path.join(root, entry), ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"boom-ray-{purpose}-{processes.own_name()}-")
