"""The layout of a run on storage: every file and directory below `<storage>/<name>`, by one name each."""

from dataclasses import dataclass

from boom_ray import storage

MODELS, UPDATES = "models", "updates"
FIRST_VERSION = "v0001"


@dataclass(frozen=True)
class Layout:
    """URIs of everything a run stores.

    An update trains its model in a directory that is laid out like a run of its own, see `update`.

    Attributes:
        root: URI of the run, `<storage>/<name>`.
    """

    root: str

    @property
    def identity(self) -> str:
        """Everything that the name of the run stands for; other recipes under the same name are refused."""
        return self._path("run.json")

    @property
    def recipe(self) -> str:
        """The recipe as it was when the run began."""
        return self._path("recipe.json")

    @property
    def heartbeats(self) -> str:
        """Directory of the heartbeats of all drivers."""
        return self._path("drivers")

    @property
    def corpus(self) -> str:
        """The corpus artifact."""
        return self._path("corpus")

    @property
    def bags(self) -> str:
        """The artifact of all bag manifests."""
        return self._path("bags")

    @property
    def baseline(self) -> str:
        """The artifact of the manifest of the full corpus, which the baseline is trained on."""
        return self._path("baseline")

    @property
    def models(self) -> str:
        """Directory of all models: bags, baseline and merged versions."""
        return self._path(MODELS)

    def model(self, name: str) -> str:
        """The model of a bag, the baseline, or a merged version."""
        return self._path(MODELS, name)

    @property
    def rehearsal(self) -> str:
        """The fingerprints of base model and settings that were rehearsed."""
        return self._path("rehearsal")

    @property
    def all_checkpoints(self) -> str:
        """Directory of the checkpoints of all bags."""
        return self._path("checkpoints")

    def checkpoints(self, bag: str) -> str:
        """Directory of the checkpoints of one bag."""
        return storage.join(self.all_checkpoints, bag)

    @property
    def ray_train(self) -> str:
        """Scratch directory of Ray Train."""
        return self._path("ray_train")

    @property
    def measurements(self) -> str:
        """Cache of measurements, by content of model and task."""
        return self._path("evaluation")

    @property
    def development(self) -> str:
        """A copy of the tasks that settings are chosen on."""
        return self._path("development")

    @property
    def evaluation(self) -> str:
        """Scores of all models of the first version."""
        return self._path("evaluation.json")

    @property
    def comparison(self) -> str:
        """The first version compared with the baseline."""
        return self._path("comparison.json")

    @property
    def calibration(self) -> str:
        """Rates measured on the cluster, for plans."""
        return self._path("calibration.json")

    @property
    def current(self) -> str:
        """The version chosen by a rollback."""
        return self._path("current.json")

    @property
    def updates(self) -> str:
        """Directory of all updates."""
        return self._path(UPDATES)

    def update(self, version: str) -> "Layout":
        """The layout of the update that makes a version."""
        return Layout(self._path(UPDATES, version))

    def request(self, version: str) -> str:
        """The request of the update that makes a version."""
        return self._path(UPDATES, version, "update.json")

    @property
    def cores(self) -> str:
        """Directory of all core samples."""
        return self._path("core")

    def core(self, version: str, percent: float) -> str:
        """The core sample of all tasks behind a version."""
        return storage.join(self.cores, f"{version}-{percent:g}")

    def relative(self, uri: str) -> str:
        """A URI below the run as a path relative to it."""
        return uri.removeprefix(self.root).lstrip("/")

    def _path(self, *names: str) -> str:
        return storage.join(self.root, *names)
