"""Pinned inputs: downloaded by the ordinary clients, verified by hash, and unpacked below one directory.

`pins.json` has the version and the SHA-256 of each. apt and pip use the sources that this machine is
configured for; the packages of Debian are those of the release `RELEASE`, whose index no longer changes.
Everything is free software or free documentation (Debian main, and the licenses in the metadata of the
wheels).
"""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

RELEASE = "bookworm"
INDEX_FILES = {"Packages": "Packages", "Translation-en": "en", "Translation-de": "de"}
PINS = Path(__file__).with_name("pins.json")
#: Wheels are those of one platform, so that all machines read the same files.
PIP = [
    *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
    *("--python-version=3.11", "--platform=any", "--platform=manylinux_2_28_x86_64"),
]


class Inputs:
    """The unpacked inputs below a directory.

    Args:
        directory: Where they are kept; downloads happen only for what is missing.
        pins: kind (`index`, `debian`, `wheel`) -> name -> version and SHA-256.
    """

    def __init__(self, directory: Path, pins: dict[str, dict[str, dict[str, str]]] | None = None) -> None:
        self.directory = directory
        self.pins = pins or json.loads(PINS.read_text())

    def index(self, name: str) -> Path:
        """A file of Debian's package index, unpacked: `Packages`, `Translation-en` or `Translation-de`."""
        path = self.directory / "index" / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            content = self._read_index(name)
            _verify(content, self.pins["index"][name]["sha256"], f"{RELEASE}'s {name}")
            path.write_bytes(content)
        return path

    def debian(self, name: str) -> Path:
        """The root of an unpacked Debian package."""
        pin, folder = self.pins["debian"][name], self.directory / "debian" / name
        if not folder.exists():
            with _Download(folder) as download:
                self._update()
                command = ["download", f"{name}={pin['version']}"]
                subprocess.run(["apt-get", *self._apt(), *command], cwd=download, check=True)
                (archive,) = download.glob("*.deb")
                _verify(archive.read_bytes(), pin["sha256"], archive.name)
                subprocess.run(["dpkg-deb", "-x", archive, download / "root"], check=True)
        return folder

    def wheel(self, name: str) -> Path:
        """The root of an unpacked wheel."""
        pin, folder = self.pins["wheel"][name], self.directory / "wheel" / name
        if not folder.exists():
            with _Download(folder) as download:
                subprocess.run([*PIP, f"--dest={download}", f"{name}=={pin['version']}"], check=True)
                (archive,) = download.glob("*.whl")
                _verify(archive.read_bytes(), pin["sha256"], archive.name)
                with zipfile.ZipFile(archive) as file:
                    file.extractall(download / "root")
        return folder

    def _apt(self) -> list[str]:
        """Options that keep apt's lists below the directory and leave those of the machine alone."""
        lists = self.directory / "lists"
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        options = [f"Dir::State::lists={lists.absolute()}", "Acquire::Languages=en,de"]
        return [part for option in [*options, "APT::Sandbox::User=root"] for part in ("-o", option)]

    def _update(self) -> None:
        if not any((self.directory / "lists").glob("*Packages*")):
            subprocess.run(["apt-get", *self._apt(), "--quiet=2", "update"], check=True)

    def _read_index(self, name: str) -> bytes:
        self._update()
        which = INDEX_FILES[name]
        created = ["Created-By: Packages"] if which == "Packages" else [f"Language: {which}"]
        filters = [f"Codename: {RELEASE}", "Component: main", "Origin: Debian", *created]
        targets = ["indextargets", "--format", "$(FILENAME)", *filters]
        found = subprocess.check_output(["apt-get", *self._apt(), *targets], text=True).splitlines()
        if len(found) != 1:
            raise SystemExit(f"apt has {len(found)} files of {RELEASE}'s {name}; the corpus needs Debian 12")
        return subprocess.check_output(["/usr/lib/apt/apt-helper", "cat-file", found[0]])


class _Download:
    """A scratch directory whose `root` becomes `folder` if nothing fails."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.scratch = folder, folder.with_name(f"{folder.name}.partial")

    def __enter__(self) -> Path:
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        return self.scratch

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            (self.scratch / "root").rename(self.folder)
        shutil.rmtree(self.scratch, ignore_errors=True)


def _verify(content: bytes, expected: str, name: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise SystemExit(
            f"{name}: its SHA-256 is {found}, the study's is {expected}. Results of another corpus cannot be "
            "compared with those stored: copy the data directory of an earlier machine"
        )
