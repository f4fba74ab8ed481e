"""Watch a training of Lightning: `Watch` as a callback of its Trainer.

    from workbench.integrations.lightning import Callback
    watch = Callback("BASE", "out/watched", prompts=task, of=lambda module: module.model)
    Trainer(callbacks=[watch])

Lightning is imported here alone, and need not be installed for anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback as Base

from workbench.integrations.watch import Values, Watch

PREFIX = "workbench/"


class Callback(Base):
    """`Watch` as a callback; of: a LightningModule's language model, by default its `model`."""

    def __init__(
        self,
        base: str | Path,
        out: str | Path,
        *,
        of: Callable[[Any], Any] = lambda module: module.model,
        **options: Any,
    ) -> None:
        super().__init__()
        self.watch, self.of = Watch(base, out, **options), of

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_global_zero:
            self._log(trainer, self.watch.step(self.of(pl_module), trainer.global_step))
        if self.watch.stopped:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self._log(trainer, self.watch.finish(self.of(pl_module), trainer.global_step))

    def _log(self, trainer: Any, found: Values | None) -> None:
        if found:
            named = {PREFIX + name: value for name, value in found.items()}
            for logger in trainer.loggers:
                logger.log_metrics(named, step=trainer.global_step)
