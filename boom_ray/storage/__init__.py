"""Storage by URI: the only room that knows schemes and stores.

`uri` takes URIs apart, `filesystems` opens their stores, `files` reads and writes, `conditional` creates
objects once, `range_reader` reads ranges from many threads, `download` copies directories in ranges,
`local_copy` to this machine, where `copies` keeps one for all processes, and `failures` explains what stores
raise.
"""

from boom_ray.storage.failures import explained
from boom_ray.storage.files import (
    copy_tree,
    create,
    delete_file,
    delete_tree,
    exists,
    is_file,
    list_files,
    list_names,
    open_input,
    open_output,
    read_bytes,
    write_bytes,
)
from boom_ray.storage.filesystems import filesystem
from boom_ray.storage.local_copy import local_directory
from boom_ray.storage.range_reader import RangeReader
from boom_ray.storage.uri import (
    absolute,
    hub_name,
    hub_uri,
    is_hub,
    is_hub_dataset,
    is_local,
    join,
    name_of,
    parent_of,
    without_credentials,
    without_scheme,
)

__all__ = [
    "RangeReader",
    "absolute",
    "copy_tree",
    "create",
    "delete_file",
    "delete_tree",
    "exists",
    "explained",
    "filesystem",
    "hub_name",
    "hub_uri",
    "is_file",
    "is_hub",
    "is_hub_dataset",
    "is_local",
    "join",
    "list_files",
    "list_names",
    "local_directory",
    "name_of",
    "open_input",
    "open_output",
    "parent_of",
    "read_bytes",
    "without_credentials",
    "without_scheme",
    "write_bytes",
]
