"""Watch a training of transformers' Trainer, or of TRL's, which are Trainers.

    from workbench.integrations.transformers import Callback
    trainer = SFTTrainer(model, train_dataset=data, callbacks=[])
    Callback("BASE", "out/watched", prompts=task).attach(trainer)
    trainer.train()

The values go to wherever the Trainer logs, under "workbench/"; a rule for stopping ends the
training after the step at which it holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from workbench.integrations.watch import Values, Watch

PREFIX = "workbench/"


class Callback(TrainerCallback):
    """`Watch` as a callback of a Trainer; base, out and all options are the watch's own."""

    def __init__(self, base: str | Path, out: str | Path, **options: Any) -> None:
        self.watch = Watch(base, out, **options)
        self.trainer: Any = None

    def attach(self, trainer: Any) -> Callback:
        """Add itself to a trainer, and log where it does; returns itself. A callback that is given
        to a Trainer in another way measures and stops alike, and logs nothing there."""
        trainer.add_callback(self)
        self.trainer = trainer
        return self

    def on_step_end(self, args: Any, state: Any, control: Any, **known: Any) -> Any:
        if state.is_world_process_zero:
            self._log(self.watch.step(known["model"], state.global_step))
        if self.watch.stopped:
            control.should_training_stop = True
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **known: Any) -> Any:
        if state.is_world_process_zero:
            self._log(self.watch.finish(known["model"], state.global_step))
        return control

    def _log(self, found: Values | None) -> None:
        if found and self.trainer is not None:
            self.trainer.log({PREFIX + name: value for name, value in found.items()})
