"""Reports of rank 0 while a bag trains: metrics log, progress, and warnings."""

from boom_ray.artifacts.contents import SelfCheck
from boom_ray.train.bag_job import BagJob
from boom_ray.train.diagnostics import TrainingDiagnostics
from boom_ray.train.metrics_log import MetricsLog, StepMetrics
from boom_ray.train.progress_actor import BagState
from boom_ray.train.training_state import TrainingState

WORSE = 0.99  # a lower score than this fraction of the base model's is worth a warning


class TrainingReporter:
    """Reports one bag to the metrics log and the progress actor. Calls of the actor are never awaited."""

    def __init__(self, job: BagJob, num_steps: int) -> None:
        self.name, self.actor, self.num_steps = job.name, job.progress_actor, num_steps
        self.log = MetricsLog({"run": job.recipe.name, "bag": job.name})
        self.diagnostics = TrainingDiagnostics(job.recipe.train.max_grad_norm)

    def begin_attempt(self) -> None:
        """Report that an attempt of the bag starts."""
        self.actor.begin_attempt.remote(self.name)

    def report(self, state: TrainingState, metrics: StepMetrics) -> None:
        """Report a completed step."""
        self.log.append(metrics)
        progress = BagState(
            step=state.step,
            num_steps=self.num_steps,
            loss=state.loss,
            tokens_per_second=state.tokens / state.seconds,
            seconds_left=state.seconds / state.step * (self.num_steps - state.step),
            num_ranks=state.num_ranks,
        )
        self.actor.report.remote(self.name, progress)
        for text in self.diagnostics.update(metrics.loss, metrics.grad_norm, metrics.similarity):
            self.actor.warn.remote(self.name, text)

    def report_notice(self, step: int) -> None:
        """Report that the cluster has announced the end of a node."""
        self.actor.warn.remote(
            self.name, f"a node is about to be taken away: saving a checkpoint at step {step:,}"
        )

    def report_check(self, scores: SelfCheck) -> None:
        """Warn if training made retrieval worse."""
        before, after = scores.before, scores.after
        if before is not None and after is not None and after < WORSE * before:
            self.actor.warn.remote(
                self.name,
                f"retrieval is worse than with the base model: mean reciprocal rank {before:.3f} before "
                f"training, {after:.3f} after. Try a lower train.learning_rate, and check the tasks' rows",
            )
