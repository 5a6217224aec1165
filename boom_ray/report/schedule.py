"""The timeline of a run, and the cost of its training."""

import itertools
from dataclasses import dataclass
from statistics import harmonic_mean, median

from boom_ray.report.collect import RunContents, TrainedModel
from boom_ray.report.scale import axis, duration, unit_of

PAUSE_STEPS = 10  # median steps: a longer gap between two steps is a pause of the training
PAUSE_SECONDS = 600  # shorter pauses of the whole run are always shown

Span = tuple[float, float]


@dataclass(frozen=True)
class TimelineBar:
    """A stage or a model in the chart.

    Attributes:
        color: Index of the color of the model's loss curve; None for a stage.
        start: In percent of the whole time, like `width`.
        busy: Starts and widths of the parts in which steps followed each other, in percent.
        text: Its duration.
    """

    label: str
    color: int | None
    start: float
    width: float
    busy: list[Span]
    text: str


@dataclass(frozen=True)
class Timeline:
    """All stages on one axis of time.

    Attributes:
        cuts: Positions of the long pauses that the axis omits, with their durations.
        unit: That of the ticks.
        began: Seconds since 1970.
        seconds: Duration without the omitted pauses.
    """

    bars: list[TimelineBar]
    ticks: list[tuple[float, str]]
    cuts: list[tuple[float, str]]
    unit: str
    began: float
    seconds: float


class _Clock:
    """An axis of time that omits pauses longer than both `PAUSE_SECONDS` and all work together."""

    def __init__(self, spans: list[Span]) -> None:
        self.active: list[Span] = []
        for start, end in sorted(spans):  # bags train at the same time: join overlapping spans
            if self.active and start <= self.active[-1][1]:
                self.active[-1] = (self.active[-1][0], max(end, self.active[-1][1]))
            else:
                self.active.append((start, end))
        busy = sum(end - start for start, end in self.active)
        idle = [(one[1], other[0]) for one, other in itertools.pairwise(self.active)]
        self.cuts = [(start, end) for start, end in idle if end - start > max(busy, PAUSE_SECONDS)]
        self.whole = self.shown(self.active[-1][1])

    def shown(self, moment: float) -> float:
        """Seconds since the start, without the omitted pauses."""
        passed = moment - self.active[0][0]
        for start, end in self.cuts:
            if moment > start:
                passed -= min(moment, end) - start
        return passed

    def at(self, moment: float) -> float:
        """Position in percent."""
        return round(100 * self.shown(moment) / self.whole, 2)


def timeline(found: RunContents) -> Timeline | None:
    """The times of stages and bags; None if no record contains any."""
    spans: list[tuple[str, int | None, Span, list[Span], str]] = []
    if found.corpus and "corpus" in found.corpus.times:
        span = found.corpus.times["corpus"]
        spans.append(("corpus", None, span, [span], ""))
    for color, model in enumerate(found.trained):
        if model.record and "train" in model.record.times:
            ranks = f" on {', '.join(map(str, model.ranks))} ranks" if model.ranks not in ([], [1]) else ""
            spans.append((model.name, color, model.record.times["train"], _running(model), ranks))
    if found.record:
        spans += [(stage, None, span, [span], "") for stage, span in found.record.times.items()]
    if not spans:
        return None
    clock = _Clock([span for _, _, span, _, _ in spans])
    bars = [
        TimelineBar(
            label=label,
            color=color,
            start=clock.at(start),
            width=round(clock.at(end) - clock.at(start), 2),
            busy=[(clock.at(since), round(clock.at(to) - clock.at(since), 2)) for since, to in busy],
            text=duration(end - start) + note,
        )
        for label, color, (start, end), busy, note in spans
    ]
    size, unit = unit_of(clock.whole)
    ticks = axis([0.0, clock.whole], unit=size, tight=True).ticks
    cuts = [(clock.at(start), duration(end - start)) for start, end in clock.cuts]
    return Timeline(bars, ticks, cuts, unit, clock.active[0][0], clock.whole)


def _running(model: TrainedModel) -> list[Span]:
    """The spans in which steps followed each other; a long pause, as after a failure, separates two."""
    times = [step.time for step in model.steps]
    if len(times) < 2:
        return []
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    longest = max(PAUSE_STEPS * median(pauses), 30.0)
    spans, since = [], times[0]
    for at, pause in enumerate(pauses):
        if pause > longest:
            spans.append((since, times[at]))
            since = times[at + 1]
    return [*spans, (since, times[-1])]


@dataclass(frozen=True)
class TrainingCost:
    """The cost of training some models.

    Attributes:
        steps: Optimizer steps.
        queries: Rows read, with repetition.
        passes: Rows read in proportion to the rows of the corpus.
        rank_seconds: Seconds of training times ranks.
        device: The device of a rank: `GPU` or `CPU worker`.
    """

    steps: int
    queries: int
    passes: float
    rank_seconds: float
    device: str


def cost(found: RunContents, models: list[TrainedModel]) -> TrainingCost | None:
    """The sum over the published models; None if there is none."""
    metrics = [model.record.metrics.training for model in models if model.record]
    trainings = [training for training in metrics if training]
    if not trainings or found.corpus is None:
        return None
    rows = sum(task.rows for task in found.corpus.config.tasks.values())
    queries = sum(training.step for training in trainings) * found.recipe.train.batch_size
    return TrainingCost(
        steps=sum(training.step for training in trainings),
        queries=queries,
        passes=queries / rows,
        rank_seconds=sum(map(_rank_seconds, models)),
        device="GPU" if found.recipe.train.execution.use_gpu else "CPU worker",
    )


def _rank_seconds(model: TrainedModel) -> float:
    """Seconds times ranks; where their number changed, a step is assumed to take so much less time."""
    training = model.record.metrics.training if model.record else None
    if training is None:
        return 0.0
    return training.seconds * harmonic_mean([step.num_ranks for step in model.steps] or [training.num_ranks])
