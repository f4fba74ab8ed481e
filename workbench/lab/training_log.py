"""What is watched along a training run: gradients by component, and what is predicted.

The gradient norm of a component is that of its parameters before clipping, root mean square over
the steps since the last line of the log: layers and components converge at different speeds (Yang &
Ma 2022, arXiv 2210.10325). Entropy and KL(start || now) are means over the labelled tokens of the
run's first texts, in nats: a policy that collapses loses entropy, one that drifts gains KL.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.files.writing import OWN, writing
from workbench.loaders.names import locate

TEXTS = 4  # of the first batch
TOKENS = 256  # labelled ones at most: the start's log-probabilities of all words are kept for them


def by_component(model: Any) -> dict[str, list[Any]]:
    """Component -> its trained parameters in all layers; those outside the blocks by their name,
    the factors of a LoRA apart ("self_attn.q_proj.lora_A")."""
    found: dict[str, list[Any]] = defaultdict(list)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, site in locate(trained).items():
        found[site.component.removesuffix(".default")].append(trained[name])
    return dict(found)


class TrainingLog:
    """Of one run. batch: texts whose predictions are followed. folder: where the start's are kept
    while the run lasts."""

    def __init__(self, model: Any, batch: dict[str, Tensor], precision: str, folder: Path) -> None:
        self.model, self.precision, self.file = model, precision, folder / "start.pt"
        self.batch = {name: tensor[:TEXTS] for name, tensor in batch.items()}
        self.parts = by_component(model)
        self.steps, self.squares = 0, dict.fromkeys(self.parts, 0.0)

    def begin(self) -> None:
        """Keep what the run starts from."""
        with writing(self.file, OWN) as temporary:
            torch.save(self._predicted(), temporary)

    def step(self) -> None:
        """After a backward pass, before the gradients are clipped."""
        self.steps += 1
        for name, parameters in self.parts.items():
            found = [p.grad for p in parameters if p.grad is not None]
            self.squares[name] += float(torch.nn.utils.get_total_norm(found)) ** 2

    def told(self) -> dict[str, Any]:
        """The entries of a line of the log; the steps are counted anew from here."""
        now = self._predicted()
        entropy = -(now.exp() * now).sum(-1).mean()
        found: dict[str, Any] = {"entropy": float(entropy)}
        if self.file.is_file():
            start = torch.load(self.file, weights_only=True)
            found["kl"] = float((start.exp() * (start - now)).sum(-1).mean())
        if self.steps:
            squares = self.squares.items()
            found["gradient_norm"] = {n: (total / self.steps) ** 0.5 for n, total in squares}
        self.steps, self.squares = 0, dict.fromkeys(self.parts, 0.0)
        return found

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "squares": dict(self.squares)}

    def resume(self, state: dict[str, Any] | None) -> None:
        """Take up what `state` gave; None of a state from before anything was watched."""
        if state is not None:
            self.steps, self.squares = state["steps"], dict(state["squares"])

    def _predicted(self) -> Tensor:
        """Log-probabilities of every word at the labelled tokens, (tokens, vocabulary), float32."""
        device = next(self.model.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in self.batch.items()}
        was = self.model.training
        self.model.eval()
        low = torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
        with torch.no_grad(), low:
            logits = self.model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                use_cache=False,
            ).logits
        self.model.train(was)
        counted = batch["labels"][:, 1:] != -100
        return logits[:, :-1][counted][:TOKENS].float().log_softmax(-1).cpu()
