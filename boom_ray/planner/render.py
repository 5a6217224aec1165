"""Lines of text for the parts of a plan."""

from collections.abc import Iterator
from dataclasses import asdict

from boom_ray.planner import cost
from boom_ray.planner.assumptions import duration, quantity
from boom_ray.planner.estimate import BagEstimate, Estimate
from boom_ray.planner.forecast import Forecast, bottleneck
from boom_ray.planner.memory import MemoryTable

GIB = 1 << 30
WIDTH = 40


def corpus(estimate: Estimate) -> Iterator[str]:
    """One line per task, and one for the base model."""
    workload, shape = estimate.workload, estimate.workload.shape
    for task in workload.recipe.data.tasks:
        texts = workload.texts[task.name]
        source = "measured" if texts.measured else "assumed"
        yield (
            f"corpus: {task.name} ({task.type}): {workload.num_rows[task.name]:,} rows; a batch has "
            f"{texts.texts:,.0f} texts, {texts.tokens:,.0f} tokens ({source})"
        )
    yield (
        f"model: {shape.parameters / 1e6:,.1f} M parameters, {shape.multiplying / 1e6:,.1f} M in matrix "
        f"products, {shape.trained / 1e6:,.1f} M trained"
    )


def bags(estimate: Estimate) -> Iterator[str]:
    """One line per bag, and one for a step of the longest bag."""
    for bag in estimate.bags:
        hours = bag.ranks * bag.seconds / 3600 * estimate.cluster.gpus_per_rank
        yield (
            f"{bag.name}: {bag.planned.bag.describe()}, {bag.rows:,} rows, {bag.tokens / 1e6:,.1f} M tokens, "
            f"{quantity(bag.steps * bag.step.flops, 'FLOP')}, {bag.steps:,} steps of "
            f"{duration(bag.step.seconds)}, {duration(bag.seconds)}, {hours:,.3g} {kind(estimate)}-hours"
        )
    bag, step = estimate.longest, estimate.longest.step
    per_rank = bag.ranks * step.seconds
    useful = cost.model_flops(bag.planned.shape, bag.planned.batches) / per_rank
    yield (
        f"step of {bag.name}: compute {duration(step.compute)}, launches {duration(step.launches)}, feed "
        f"{duration(step.feed)}, network {duration(step.network)} ({duration(step.exposed)} after the "
        f"passes), optimizer {duration(step.optimizer)}; {quantity(step.flops / per_rank, 'FLOP/s')} per "
        f"rank, {quantity(useful, 'FLOP/s')} without padding and recomputation"
    )


def schedule(estimate: Estimate) -> Iterator[str]:
    """A heading, and one line with a bar per bag and stage."""
    cluster, end = estimate.cluster, estimate.run
    yield (
        f"schedule: {cluster.num_gpus:,} {cluster.gpu_type}, {cluster.num_ranks:,} ranks; the run takes "
        f"{duration(end)}, embedding afterwards {duration(estimate.embed)}"
    )
    merged = estimate.train + estimate.merge
    spans = [(bag.name, _ranks(bag), bag.start, bag.end) for bag in estimate.bags]
    spans.sort(key=lambda span: (span[2], -span[3]))
    spans += [("merge", "", estimate.train, merged)]
    spans += [("evaluate", "", merged, end)] if estimate.evaluate else []
    for name, ranks, start, stop in spans:
        left, right = (round(WIDTH * moment / end) for moment in (start, stop))
        left = min(left, WIDTH - 1)
        bar = " " * left + "#" * max(1, right - left)
        yield f"  {name:8}  {ranks:9} |{bar:{WIDTH}}| {duration(start)} to {duration(stop)}"


def memory(estimate: Estimate, table: MemoryTable) -> Iterator[str]:
    """Memory of a rank by batch size and ZeRO stage, and its parts with the recipe's settings."""
    train = estimate.workload.recipe.train
    yield (
        f"memory: GiB of {table.available / GIB:.1f} on each of {table.num_ranks} ranks, by batch size and "
        "ZeRO stage, all texts at maximum length (! does not fit, * the recipe)"
    )
    for batch_size, stages in table.by_batch_size.items():
        cells = []
        for stage, one in enumerate(stages):
            is_own = (batch_size, stage) == (train.batch_size, train.execution.zero_stage)
            marks = ("!" if one.total > table.available else " ") + ("*" if is_own else " ")
            cells.append(f"{stage}: {one.total / GIB:8.1f}{marks}")
        yield f"  batch {batch_size:>6}  {'  '.join(cells)}".rstrip()
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in asdict(table.recipe).items())
    host = f"; the host of the first rank holds {table.host / GIB:.1f}" if table.host else ""
    yield f"  the recipe: {parts}; chunks of up to {table.largest_chunk:,.0f} tokens fit{host}"


def volumes(estimate: Estimate) -> Iterator[str]:
    """Bytes stored and bytes transferred."""
    for title, parts in (("storage", estimate.storage), ("network", estimate.network)):
        each = ", ".join(f"{name} {quantity(size, 'B')}" for name, size in parts.items() if size)
        yield f"{title}: {quantity(sum(parts.values()), 'B')}: {each}"


def failures(estimate: Estimate, forecast: Forecast) -> Iterator[str]:
    """The effect of node failures, the checkpoint interval, and the bottleneck."""
    longer = 100 * (forecast.makespan / estimate.train - 1)
    yield (
        f"failures: {forecast.failures:.1f} nodes lost; training takes {duration(forecast.makespan)} "
        f"({longer:+.1f} %), {100 * forecast.lost:.2f} % of the work is repeated, checkpoints take "
        f"{100 * forecast.saving:.2f} %"
    )
    save_every = estimate.workload.recipe.train.execution.save_every_steps
    steps = max(1, round(forecast.best_interval / estimate.longest.step.seconds))
    yield (
        f"  checkpoints every {duration(forecast.interval)} (save_every_steps {save_every}); the best "
        f"simulated interval is {duration(forecast.best_interval)} ({steps:,} steps, training takes "
        f"{duration(forecast.best_makespan)}), Young's formula gives {duration(forecast.young)}, Daly's "
        f"{duration(forecast.daly)}"
    )
    yield (
        f"  bottleneck: {bottleneck(estimate, forecast)}; head node: load {100 * forecast.head_load:.2g} %, "
        f"memory {forecast.head_memory / GIB:.1f} GiB"
    )


def costs(estimate: Estimate, held_hours: float, price: float | None) -> str:
    """Rows, steps and GPU-hours, and the price if there is one."""
    unit, num_rows = f"{kind(estimate)}-hours", sum(estimate.workload.num_rows.values())
    total = f"; price {price:,.2f}" if price is not None else ""
    return (
        f"cost: {estimate.passes:.1f}x one pass over the corpus of {num_rows:,} rows, "
        f"{sum(bag.steps for bag in estimate.bags):,} steps; {estimate.training_hours:,.4g} {unit} of "
        f"training, {held_hours:,.4g} if the run holds the whole cluster, with node failures{total}"
    )


def scale(rows: list[tuple[Estimate, Forecast]]) -> Iterator[str]:
    """One line per size of the cluster, and the size from which each bottleneck holds."""
    yield "scale:  GPUs       train     lost   saving  best interval       merge    head  bottleneck"
    first: dict[str, int] = {}
    for estimate, forecast in rows:
        num_gpus, found = estimate.cluster.num_gpus, bottleneck(estimate, forecast)
        first.setdefault(found, num_gpus)
        yield (
            f"  {num_gpus:>10,}  {duration(forecast.makespan):>10}  {100 * forecast.lost:5.2f} %  "
            f"{100 * forecast.saving:5.2f} %  {duration(forecast.best_interval):>13}  "
            f"{duration(estimate.merge):>10}  {100 * forecast.head_load:4.1f} %  {found}"
        )
    yield f"  bottleneck: {', '.join(f'{name} from {number:,} GPUs on' for name, number in first.items())}"


def kind(estimate: Estimate) -> str:
    """The unit of a processor."""
    return "CPU" if estimate.cluster.on_cpus else "GPU"


def _ranks(bag: BagEstimate) -> str:
    return f"{bag.ranks} rank{'s' * (bag.ranks > 1)}"
