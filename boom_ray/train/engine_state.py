"""What a DeepSpeed engine counts: with master weights and moments, all of its state."""

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class LossScale(BaseModel):
    """The dynamic scale of the loss in fp16.

    Attributes:
        scale: The factor.
        iterations: Steps so far, skipped ones included.
        last_overflow: The last step whose gradient was not finite; -1 before the first.
        hysteresis: Further such steps before the scale is lowered.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: float
    iterations: int
    last_overflow: int
    hysteresis: int

    @classmethod
    def of(cls, scaler: Any) -> "LossScale":
        """The state of DeepSpeed's `DynamicLossScaler`."""
        return cls(
            scale=scaler.cur_scale,
            iterations=scaler.cur_iter,
            last_overflow=scaler.last_overflow_iter,
            hysteresis=scaler.cur_hysteresis,
        )

    def restore(self, scaler: Any) -> None:
        """Set the state of a `DynamicLossScaler`."""
        scaler.cur_scale, scaler.cur_iter = self.scale, self.iterations
        scaler.last_overflow_iter, scaler.cur_hysteresis = self.last_overflow, self.hysteresis


class EngineState(BaseModel):
    """The counters that DeepSpeed stores in its own checkpoints.

    What else it stores follows from the recipe: settings, and the learning rate, which is a function of
    `schedule_steps`. Random numbers have no state: batches are functions of the seed, and dropout is off.

    Attributes:
        adam_steps: Updates of the weights, for the bias correction of the moments.
        schedule_steps: Steps of the schedule of the learning rate.
        global_steps: Steps, skipped ones included.
        skipped_steps: Steps whose gradient was not finite.
        loss_scale: None if the loss is not scaled.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    adam_steps: int
    schedule_steps: int
    global_steps: int
    skipped_steps: int
    loss_scale: LossScale | None

    @classmethod
    def of(cls, engine: "DeepSpeedEngine") -> "EngineState":
        """The state of an engine; equal on all ranks."""
        scaler = _dynamic_scaler(engine)
        return cls(
            # A weight that never has a gradient is not updated without ZeRO.
            adam_steps=max(int(state["step"]) for state in engine.basic_optimizer.state.values()),
            schedule_steps=engine.lr_scheduler.last_epoch,
            global_steps=engine.global_steps,
            skipped_steps=engine.skipped_steps,
            loss_scale=None if scaler is None else LossScale.of(scaler),
        )

    def restore(self, engine: "DeepSpeedEngine") -> None:
        """Set the state of an engine whose moments exist."""
        for state in engine.basic_optimizer.state.values():
            state["step"].fill_(self.adam_steps)
        self._restore_schedule(engine.lr_scheduler)
        engine.global_steps, engine.skipped_steps = self.global_steps, self.skipped_steps
        engine.global_samples = self.global_steps * engine.train_batch_size()
        scaler = _dynamic_scaler(engine)
        if scaler is not None and self.loss_scale is not None:
            self.loss_scale.restore(scaler)

    def _restore_schedule(self, schedule: Any) -> None:
        steps = self.schedule_steps
        rates = [
            rate * factor(steps) for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        counted = {"last_epoch": steps, "_step_count": steps + 1, "_last_lr": rates}
        schedule.load_state_dict(schedule.state_dict() | counted)
        for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def _dynamic_scaler(engine: Any) -> Any:
    """The loss scaler of fp16, or None."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return scaler if scaler is not None and scaler.dynamic else None
