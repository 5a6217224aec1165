"""A plan as lines of text."""

from collections.abc import Iterator

from boom_ray.planner import cost, memory
from boom_ray.planner.assumptions import Assumptions, duration, quantity
from boom_ray.planner.estimate import Bag, Estimate
from boom_ray.planner.outlook import Outlook, bottleneck

GIB = 1 << 30
WIDTH = 40


def lines(estimate: Estimate, seen: Outlook, assume: Assumptions) -> Iterator[str]:
    """The whole plan but its assumptions."""
    yield from _corpus(estimate)
    yield from _bags(estimate)
    yield _step(estimate)
    yield from _schedule(estimate)
    yield from _memory(estimate, assume)
    for title, parts in (("storage", estimate.storage), ("network", estimate.network)):
        each = ", ".join(f"{name} {quantity(size, 'B')}" for name, size in parts.items() if size)
        yield f"{title}: {quantity(sum(parts.values()), 'B')}: {each}"
    yield from _failures(estimate, seen)
    yield _price(estimate, seen, assume)


def _corpus(estimate: Estimate) -> Iterator[str]:
    known, shape = estimate.known, estimate.known.shape
    for task in known.recipe.data.tasks:
        load = known.loads[task.name]
        source = "measured" if load.measured else "assumed"
        yield (
            f"corpus: {task.name} ({task.type}): {known.sizes[task.name]:,} rows; a batch of "
            f"{load.texts:,.0f} texts, {load.tokens:,.0f} tokens ({source})"
        )
    yield (
        f"model: {shape.parameters / 1e6:,.1f} M weights, {shape.multiplying / 1e6:,.1f} M of them multiply, "
        f"{shape.trained / 1e6:,.1f} M are trained"
    )


def _bags(estimate: Estimate) -> Iterator[str]:
    for bag in estimate.bags:
        tokens, hours = bag.steps * bag.load.tokens, f"{_hours(estimate, bag):,.3g} {_kind(estimate)}-hours"
        yield (
            f"{bag.name}: {bag.ratio:g} % of every task, {bag.rows:,} rows, {tokens / 1e6:,.1f} M tokens, "
            f"{quantity(bag.steps * bag.step.flops, 'FLOP')}, {bag.steps:,} steps of "
            f"{duration(bag.step.seconds)}, {duration(bag.seconds)}, {hours}"
        )


def _step(estimate: Estimate) -> str:
    bag, shape = estimate.longest, estimate.known.shape
    useful = cost.model_flops(shape, bag.load) / bag.ranks / bag.step.seconds
    return (
        f"a step of {bag.name}: {duration(bag.step.compute)} of arithmetic, {duration(bag.step.network)} of "
        f"network, {duration(bag.step.optimizer)} of optimizer; a rank computes "
        f"{quantity(bag.step.flops / bag.ranks / bag.step.seconds, 'FLOP/s')}, of which "
        f"{quantity(useful, 'FLOP/s')} are neither padding nor done again"
    )


def _schedule(estimate: Estimate) -> Iterator[str]:
    cluster, end = estimate.cluster, estimate.run
    yield (
        f"schedule: {cluster.num_gpus:,} {cluster.gpu_type}, room for {cluster.num_ranks:,} ranks; in all "
        f"{duration(end)}, and {duration(estimate.embed)} for embedding afterwards"
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


def _memory(estimate: Estimate, assume: Assumptions) -> Iterator[str]:
    shape, train, available = estimate.known.shape, estimate.known.recipe.train, estimate.rank.memory
    width, batch, stage = estimate.longest.ranks, train.batch_size, train.execution.zero_stage
    yield (
        f"memory: GiB on each of {width} ranks, of {available / GIB:.1f}, by batch size and ZeRO stage, when "
        "all texts have their maximum length (! does not fit, * the recipe)"
    )
    for rows in (max(2, batch // 2), batch, 2 * batch, 4 * batch):
        cells = []
        for number in range(4):
            total = memory.on_rank(shape, train, width, number, rows, assume).total
            marks = ("!" if total > available else " ") + ("*" if (rows, number) == (batch, stage) else " ")
            cells.append(f"{number}: {total / GIB:8.1f}{marks}")
        yield f"  batch {rows:>6}  {'  '.join(cells)}".rstrip()
    own = memory.on_rank(shape, train, width, stage, batch, assume)
    yield (
        f"  the recipe: states {own.states / GIB:.1f}, buffers {own.buffers / GIB:.1f}, activations "
        f"{own.activations / GIB:.1f}, loss {own.loss / GIB:.1f}, overhead {own.overhead / GIB:.1f}; with "
        f"grad_cache a chunk of {memory.largest_chunk(own, shape, train, available):,.0f} tokens would fit"
    )


def _failures(estimate: Estimate, seen: Outlook) -> Iterator[str]:
    yield (
        f"failures: {seen.failures:.1f} lost nodes expected; training takes {duration(seen.makespan)} "
        f"({100 * (seen.makespan / estimate.train - 1):+.1f} %), {100 * seen.lost:.2f} % of the work is done "
        f"again, saving takes {100 * seen.saving:.2f} %"
    )
    steps = max(1, round(seen.best / estimate.longest.step.seconds))
    yield (
        f"  a checkpoint every {duration(seen.interval)} (save_every_steps "
        f"{estimate.known.recipe.train.execution.save_every_steps}); the best interval simulated is "
        f"{duration(seen.best)} ({steps:,} steps; training takes {duration(seen.best_makespan)}), by Young's "
        f"formula {duration(seen.young)}, by Daly's {duration(seen.daly)}"
    )
    held = seen.head_memory / GIB
    head = f"the head node is busy {100 * seen.head:.2g} % of the time and holds {held:.1f} GiB"
    yield f"  bottleneck: {bottleneck(estimate, seen)}; {head}"


def _price(estimate: Estimate, seen: Outlook, assume: Assumptions) -> str:
    kind, used = _kind(estimate), sum(_hours(estimate, bag) for bag in estimate.bags)
    held = estimate.cluster.num_gpus * (seen.makespan + estimate.merge + estimate.evaluate) / 3600
    rate = assume.take("price.per_gpu_hour", 0.0, "", "none; give --price")
    price = f"; {rate * held:,.2f} at {rate:g} an hour" if rate else ""
    return (
        f"cost: {used:,.4g} {kind}-hours of training, {held:,.4g} while a run holds all {kind}s, with lost "
        f"nodes{price}"
    )


def _hours(estimate: Estimate, bag: Bag) -> float:
    return bag.ranks * estimate.cluster.share * bag.seconds / 3600


def _kind(estimate: Estimate) -> str:
    return "CPU" if estimate.cluster.on_cpus else "GPU"


def _ranks(bag: Bag) -> str:
    return f"{bag.ranks} rank{'s' * (bag.ranks > 1)}"


def scale_lines(rows: list[tuple[int, Estimate, Outlook]]) -> Iterator[str]:
    """A line for each size of the cluster, and where something other than training takes over."""
    yield "scale:  GPUs       train     lost   saving  best interval       merge    head  bottleneck"
    first: dict[str, int] = {}
    for num_gpus, estimate, seen in rows:
        found = bottleneck(estimate, seen)
        first.setdefault(found, num_gpus)
        yield (
            f"  {num_gpus:>10,}  {duration(seen.makespan):>10}  {100 * seen.lost:5.2f} %  "
            f"{100 * seen.saving:5.2f} %  {duration(seen.best):>13}  {duration(estimate.merge):>10}  "
            f"{100 * seen.head:4.1f} %  {found}"
        )
    yield f"  bottleneck: {', '.join(f'{name} from {number:,} GPUs on' for name, number in first.items())}"
