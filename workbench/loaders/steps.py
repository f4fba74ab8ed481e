"""A training run as a family of its checkpoints: what a Trainer leaves as checkpoint-500 and so on,
or `lab.train` as steps/step-000500."""

from __future__ import annotations

from pathlib import Path

from workbench.errors import WorkbenchError
from workbench.loaders.foreign_formats import STEP
from workbench.loaders.pair import Family, Reference, load_family

WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin")


def checkpoints(run: str | Path) -> dict[int, Path]:
    """Step -> folder of every checkpoint of a run, in order; of lab.train they are in `steps`."""
    run = Path(run)
    homes = [home for home in (run, run / "steps") if home.is_dir()]
    folders = [one for home in homes for one in home.iterdir() if one.is_dir()]
    named = [(STEP.fullmatch(one.name), one) for one in folders]
    return dict(sorted((int(found.group(1)), one) for found, one in named if found))


def load_steps(base: Reference, run: str | Path, *, every: int = 1) -> Family:
    """The checkpoints of a training run over its base, in order, as models "step 500" and so on;
    nothing is read before it is needed.

    run: the folder with the checkpoints; where it holds weights too, those of the end, they are the
    model "end". every: 2 takes every second checkpoint, and so on, and always the last. Raises
    WorkbenchError where there is no checkpoint.
    """
    if every < 1:
        raise WorkbenchError(f"Expected every of at least 1, found {every}.")
    found, run = checkpoints(run), Path(run)
    if not found:
        raise WorkbenchError(
            f"Expected a training run with checkpoints in {run} (checkpoint-500 and so on, as a "
            "Trainer writes them), found none; give the Trainer's output folder."
        )
    kept = [*found.items()]
    chosen = dict([*kept[::every], kept[-1]])
    members: dict[str, Reference] = {f"step {step}": folder for step, folder in chosen.items()}
    if any(next(run.glob(name), None) for name in WEIGHTS):
        members["end"] = run
    return load_family(base, members)
