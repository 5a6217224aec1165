"""Local copies of remote directories, for libraries that read only local paths."""

import os

import xxhash

from boom_ray.errors import InputError, NotFoundError
from boom_ray.storage.copies import shared_copy
from boom_ray.storage.download import download
from boom_ray.storage.failures import explained
from boom_ray.storage.files import list_files
from boom_ray.storage.uri import hub_name, is_hub, is_hub_dataset, is_local, name_of

HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "README.md", "LICENSE*"]


def local_directory(uri: str) -> str:
    """A local directory with the content of `uri`, for libraries that read only local paths.

    A local path is returned as it is. A hub repository comes from the hub's own cache. Anything else is
    copied once per machine into a cache whose key covers the listing (path, size, time) of the source. No
    process deletes a copy that this one has used.

    Raises:
        InputError: if the URI names a data set of the hub.
        NotFoundError: if nothing exists at `uri`, or the hub does not provide it.
        StorageError: if the copy fails, or the disk is too full for it.
    """
    if is_hub(uri):
        from huggingface_hub import snapshot_download

        if is_hub_dataset(uri):
            raise InputError(f"{uri}: a data set of the hub, where a model is needed. Write hf://owner/name")
        repository, revision = hub_name(uri)
        with explained(uri):
            return snapshot_download(repository, revision=revision, allow_patterns=HUB_FILES)
    if is_local(uri):
        if not os.path.isdir(uri):
            raise NotFoundError(
                f"{uri}: no such directory. Check the path; a hub model is written hf://owner/name"
            )
        return uri
    files = list_files(uri)
    if not files:
        raise NotFoundError(f"{uri}: contains no files. Check the bucket and the prefix")
    listing = repr([uri, [(name, info.size, info.mtime_ns) for name, info in files.items()]])
    sizes = {name: info.size for name, info in files.items()}
    key = xxhash.xxh3_128_hexdigest(listing.encode())
    return shared_copy(key, name_of(uri), sum(sizes.values()), lambda target: download(uri, sizes, target))
