"""The bagging study: what merging models of bags is worth, compared with training one model longer.

    python tests/benchmarks/bagging.py --seeds 0 1 2 [--arms NAME ...] [--tasks NAME ...] [--data DIR] [--gpu]

Trains and measures every arm at every seed whose line is not in `tests/benchmarks/bagging.jsonl` yet, adds
the lines, and prints the table of all; the picture is `tests/benchmarks/bagging.svg`. Interrupted anywhere,
the same command continues; without seeds it only shows what exists. DIR has the downloads, the corpus, the
models and the cached measurements. With `--tasks` the corpus has those tasks alone, and its lines and picture
stay in DIR.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from boom_ray.runtime import cluster  # noqa: E402
from tests.benchmarks.bagging_study import corpus, lines, picture, table  # noqa: E402
from tests.benchmarks.bagging_study.arm_run import TUNING_SEED, ArmRun  # noqa: E402
from tests.benchmarks.bagging_study.arms import ARMS, Arm  # noqa: E402
from tests.benchmarks.bagging_study.examples import digest  # noqa: E402
from tests.benchmarks.bagging_study.inputs import Inputs  # noqa: E402
from tests.benchmarks.bagging_study.study import Study  # noqa: E402
from tests.benchmarks.bagging_study.tasks import TASKS  # noqa: E402


def main(arguments: list[str] | None = None) -> None:
    """Add the missing lines, and show all."""
    options = parse(arguments)
    tasks = [task for task in TASKS if task.name in options.tasks]
    whole = len(tasks) == len(TASKS)
    name = "corpus" if whole else f"corpus-{digest(*options.tasks)[:8]}"
    path = lines.LINES if whole else options.data / f"{name}.jsonl"
    if options.seeds:
        built = corpus.build(Inputs(options.data / "inputs"), options.data / name, tasks)
        study = Study(built, options.data / f"work-{built.fingerprint}", gpu=options.gpu)
        run(study, [arm for arm in ARMS if arm.name in options.arms], options.seeds, path)
    done = lines.read(path)
    if done:
        print(table.markdown(done))
        picture.draw(done, path.with_suffix(".svg"))


def run(study: Study, arms: Sequence[Arm], seeds: Sequence[int], path: Path) -> None:
    """Add the missing lines; the tuning seed comes first, because others take its learning rates.

    Raises:
        SystemExit: if there are lines of another corpus, whose scores are of other queries.
    """
    done = lines.read(path)
    others = {line.corpus for line in done.values()} - {study.corpus.fingerprint}
    if others:
        raise SystemExit(f"{path} has lines of corpus {others}; this one is {study.corpus.fingerprint}")
    cluster.connect(dashboard=False)
    for seed in sorted(seeds, key=lambda seed: (seed != TUNING_SEED, seed)):
        for arm in arms:
            if (arm.name, seed) not in done:
                line = ArmRun(study, arm, seed, rates(study, arm, seed, done)).line()
                done[arm.name, seed] = line
                lines.append(line, path)
                print(f"{arm.name}, seed {seed}: {line.seconds}", file=sys.stderr, flush=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    tasks, arms = [task.name for task in TASKS], [arm.name for arm in ARMS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seeds", type=int, nargs="*", default=[], help="seeds; 0 chooses the learning rates")
    add("--arms", nargs="+", choices=arms, default=arms, metavar="NAME", help=", ".join(arms))
    add("--tasks", nargs="+", choices=tasks, default=tasks, metavar="NAME", help=", ".join(tasks))
    add("--data", type=Path, default=Path("~/boom-ray/bagging"), help="working directory")
    add("--gpu", action="store_true", help="train and measure on a GPU")
    options = parser.parse_args(arguments)
    options.data = options.data.expanduser().absolute()
    return options


def rates(study: Study, arm: Arm, seed: int, done: Mapping[tuple[str, int], lines.Line]) -> Sequence[float]:
    """All learning rates at the tuning seed, and the one that was chosen there at the others."""
    if seed == TUNING_SEED or not arm.trainings:
        return study.learning_rates
    tuned = done.get((arm.name, TUNING_SEED))
    if tuned is None or tuned.learning_rate is None:
        raise SystemExit(f"{arm.name}: seed {TUNING_SEED} chooses its learning rate; run it first")
    return (tuned.learning_rate,)


if __name__ == "__main__":
    main()
