"""One whole training step of boom-ray outside of Ray Train: the only file of the bench that builds one."""

import json
import os
import socket
from collections.abc import Sequence

import torch.distributed as dist

from boom_ray.data import bags, corpus
from boom_ray.model import directory
from boom_ray.recipe import Bags, Data, Recipe, Task
from boom_ray.runs.layout import Layout
from boom_ray.train.bagging import make_job
from boom_ray.train.engine import create_engine
from boom_ray.train.metrics_log import StepMetrics
from boom_ray.train.preparation import prepare
from boom_ray.train.step_runner import StepRunner
from tests.benchmarks.gpu_sections.bench import Bench
from tests.benchmarks.gpu_sections.models import LONGEST, source
from tests.benchmarks.gpu_sections.samples import Row

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
RECIPE = os.path.join(ROOT, "jobs", "recipes", "qwen3-0.6b-general.yaml")
MANY = 10**4


def process_group(bench: Bench) -> None:
    """The process group of a single rank, as Ray Train would make it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    dist.init_process_group("gloo" if bench.tiny else "nccl")


class OurStep:
    """Steps on the same rows again and again, with the settings of the 0.6B recipe and one rank.

    Each step includes the wait for its batch, which is collated and tokenized while the one before runs.

    Args:
        name: Distinguishes the corpus from those of other steps.
        rows: The rows of every batch.
    """

    def __init__(self, bench: Bench, name: str, rows: Sequence[Row], longest: int = LONGEST) -> None:
        recipe = self.recipe = _recipe(bench, name, rows, longest)
        layout = Layout(recipe.root)
        prepared = corpus.prepare(recipe.data, layout.corpus, recipe.name)
        drawn = bags.publish(prepared, recipe.bags, layout.bags)
        job = make_job(recipe, 0, prepared, drawn, directory.identify(recipe.base_model.path), None)
        self.encoder, loader = prepare(job, bench.device)
        self.engine = create_engine(self.encoder, recipe.train, loader.num_steps, 1)
        self.runner = StepRunner(job, self.encoder, loader, self.engine, 0, 1)
        self.batches = loader.from_step(0)

    def __call__(self) -> StepMetrics:
        """Run the next step."""
        return self.runner.run(*next(self.batches))

    def close(self) -> None:
        """Give up the device memory of the engine."""
        self.batches.close()  # type: ignore[attr-defined]
        self.engine.destroy()


def _recipe(bench: Bench, name: str, rows: Sequence[Row], longest: int) -> Recipe:
    """The recipe of a bag whose only batch has exactly these rows."""
    path = bench.path("steps", f"{name}.jsonl")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            line = {"query": row.query, "pos": row.passages[:1], "neg": row.passages[1:]}
            file.write(json.dumps(line) + "\n")
    general = Recipe.load(RECIPE, storage=bench.path("steps"))
    execution = general.train.execution.model_copy(
        update={"num_workers": 1, "use_gpu": not bench.tiny, "resources_per_worker": {}}
    )
    lengths = {"query_max_length": longest, "passage_max_length": longest}
    train = general.train.model_copy(
        update={"batch_size": len(rows), "epochs": MANY, "execution": execution, **lengths}
    )
    return general.model_copy(
        update={
            "name": name,
            "base_model": source(bench, "0.6B"),
            "data": Data(tasks=[Task(name="rows", path=path)], query_template="{query}"),
            "bags": Bags(ratios=[100]),
            "train": train,
        }
    )
