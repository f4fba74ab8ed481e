"""A member while it is trained: its working folder, the state it resumes from, what is written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from workbench.errors import WorkbenchError, reason
from workbench.files.writing import OWN, Mark, holds, replacing, writing
from workbench.lab.recipe import Recipe
from workbench.lab.training_log import TrainingLog
from workbench.log import log

# A member is never trained over: it is kept, where it is of the same recipe.
MEMBER = Mark("a trained model", lambda folder: (folder / "training.json").is_file())
STATE = Mark(
    "the saved state of a training run",
    holds("state.pt", "start.pt", "log.jsonl", "steps", marked=lambda _: True),
)
Evaluate = Callable[[Any, Any], dict[str, float]]


def work_folder(out: Path) -> Path:
    """Where a member is while it is trained."""
    return out.parent / f".{out.name}.training"


class Member:
    """The member being trained and its working folder beside `out`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        reference: str,
        run: dict[str, Any],
        out: Path,
        diary: TrainingLog,
    ) -> None:
        self.model, self.tokenizer, self.reference = model, tokenizer, reference
        self.run, self.out, self.diary = run, out, diary
        self.work = work_folder(out)
        self.scores: dict[str, float] = {}

    def resume(self, optimizer: torch.optim.Optimizer) -> tuple[int, float | None]:
        """Take up the saved state, if there is one; returns (steps done, running mean loss)."""
        state = self._state(self.work / "state.pt")
        if state is None:
            # What was written before the first state is written again.
            shutil.rmtree(self.work / "steps", ignore_errors=True)
            (self.work / "log.jsonl").unlink(missing_ok=True)
            self.diary.begin()
            return 0, None
        require_same_run(self.run, state["run"], self.work)
        named = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in state["weights"].items():
                named[name].copy_(tensor)
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.scores = state["scores"]
        self.diary.resume(state.get("watch"))
        entries = (self.work / "log.jsonl").read_text(encoding="utf-8").splitlines()
        kept = [line for line in entries if json.loads(line)["step"] <= state["step"]]
        with writing(self.work / "log.jsonl", OWN) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept))
        return state["step"], state["mean"]

    def _state(self, path: Path) -> dict[str, Any] | None:
        """The saved state; None where there is none, or no whole one."""
        if not path.is_file():
            return None
        try:
            state = torch.load(path, weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            log.warning(
                "%s cannot be read (%s), so the training starts again.", path, reason(error)
            )
            return None
        return state

    def save_state(self, step: int, mean: float, optimizer: torch.optim.Optimizer) -> None:
        state = {
            "run": self.run,
            "step": step,
            "mean": mean,
            "weights": {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad},
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "scores": self.scores,
            "watch": self.diary.state(),
        }
        with writing(self.work / "state.pt", OWN) as temporary:
            torch.save(state, temporary)

    def log(self, step: int, loss: float | None, evaluate: Evaluate | None) -> None:
        """Evaluate and append one line to log.jsonl: step, the running mean loss, what is watched,
        the scores."""
        self.scores = evaluate(self.model, self.tokenizer) if evaluate else {}
        told = {"step": step, "loss": loss} | self.diary.told() | self.scores
        with open(self.work / "log.jsonl", "a") as file:
            file.write(json.dumps(told) + "\n")

    def keep(self, step: int) -> None:
        """Write the member as it is now to steps/step-000500/ and so on."""
        place = Path("steps") / f"step-{step:06d}"
        with replacing(self.work / place, OWN) as folder:
            self._write(folder, step, self.out / place)

    def finish(self, step: int) -> None:
        """Write the final member and move the working folder to its place."""
        self._write(self.work, step, self.out)
        (self.work / "state.pt").unlink()
        (self.work / "start.pt").unlink(missing_ok=True)
        os.replace(self.work, self.out)

    def _write(self, folder: Path, step: int, place: Path) -> None:
        """`place` is where the folder will stand, from which the base's path is told."""
        if hasattr(self.model, "peft_config"):
            local = Path(self.reference).exists()
            told = os.path.relpath(self.reference, place) if local else self.reference
            config = self.model.peft_config["default"]
            config.base_model_name_or_path = told
            # peft keeps it as a set, whose order is another one in every process.
            config.target_modules = sorted(config.target_modules)
            self.model.save_pretrained(folder, save_embedding_layers=False)
            (folder / "README.md").unlink(missing_ok=True)
        else:
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        about = self.run | {"step": step, "seed": self.run["recipe"]["seed"], "scores": self.scores}
        (folder / "training.json").write_text(json.dumps(about, indent=1))


def require_same_run(ours: dict[str, Any], theirs: dict[str, Any], place: Path) -> None:
    # A recipe written before it had all of today's entries has their default values.
    theirs = theirs | {"recipe": Recipe.from_dict(theirs["recipe"]).as_dict()}
    for what in ("recipe", "texts", "forget"):
        if ours.get(what) != theirs.get(what):
            raise WorkbenchError(
                f"{place} holds a training run with another {what}; remove the folder "
                "or choose another one."
            )
