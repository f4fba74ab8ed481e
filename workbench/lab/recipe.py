"""How is a member of a family trained? One frozen record says it all."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from torch.nn import Embedding

from workbench.errors import WorkbenchError

CHOICES = {
    "method": ("full", "lora"),
    "loss": ("sequence", "answer", "answers"),
    "precision": ("float32", "bfloat16"),
}


@dataclass(frozen=True)
class Recipe:
    """One training run. The defaults follow Shuttleworth et al. (2024), arXiv 2410.21228:
    alpha = 2 rank, linear schedule with 6% warm-up, no weight decay.

    task: a name for what is learned. method: "full" changes the weights, "lora" adds adapters to
    all linear layers in the blocks. lr: peak learning rate. steps, batch_size: texts are drawn
    again each epoch. rank, alpha: LoRA only. loss: "sequence" over every token of the text,
    "answer" over the target's tokens alone, "answers" over the target and every answer that is in
    the prompt (its spans "answer 1", "answer 2" ...; a text without them counts whole). seed:
    adapter initialisation, order of texts, dropout. warmup: share of the steps. trainable, for full
    fine-tuning: "blocks" are the matrices of the linear layers that LoRA would adapt (embeddings,
    norms, biases and head stay), "all" is everything; or a set of modules by parts of their names,
    for LoRA too, such as ("mlp.down_proj", "layers.3.self_attn"), whose linear layers alone are
    trained (where fine-tuning edits a fact, arXiv 2509.22072). precision: "bfloat16" runs the model
    under autocast; weights, gradients and optimizer stay float32. clip: largest gradient norm.
    beta2: AdamW's decay of the mean squared gradient; lower follows a sudden change of the
    gradients sooner. checkpoints: steps after which the member is kept too. evaluate_every: steps
    between evaluations, 0 for the first and last step only. max_length: longer texts lose their
    end, in tokens. start: the member that this run goes on from, by name; None is the base.
    """

    task: str
    method: Literal["full", "lora"]
    lr: float
    steps: int
    batch_size: int = 16
    rank: int | None = None
    alpha: float | None = None
    loss: Literal["sequence", "answer", "answers"] = "sequence"
    seed: int = 0
    warmup: float = 0.06
    weight_decay: float = 0.0
    trainable: Literal["blocks", "all"] | tuple[str, ...] = "blocks"
    precision: Literal["float32", "bfloat16"] = "float32"
    clip: float = 1.0
    beta2: float = 0.999
    checkpoints: tuple[int, ...] = ()
    evaluate_every: int = 0
    max_length: int = 256
    start: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "checkpoints", tuple(self.checkpoints))
        if not isinstance(self.trainable, str):
            object.__setattr__(self, "trainable", tuple(self.trainable))
        _require(
            self.trainable in ("blocks", "all")
            or (bool(self.trainable) and not isinstance(self.trainable, str)),
            f"trainable must be blocks, all or parts of modules' names, not {self.trainable!r}.",
        )
        for name, allowed in CHOICES.items():
            _require(
                getattr(self, name) in allowed,
                f"{name} must be {' or '.join(allowed)}, not {getattr(self, name)!r}.",
            )
        for name in ("steps", "batch_size"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1.")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            _require(
                math.isfinite(value) and value > 0,
                f"{name} must be a positive number, not {value}.",
            )
        _require(0 <= self.warmup < 1, f"warmup is a share of the steps, not {self.warmup}.")
        _require(0 <= self.beta2 < 1, f"beta2 must lie in [0, 1), not {self.beta2}.")
        _require(self.weight_decay >= 0, "weight_decay must not be negative.")
        _require(self.evaluate_every >= 0, "evaluate_every must not be negative.")
        _require(self.max_length >= 2, "max_length must be at least 2 tokens.")
        _require(
            all(0 < step < self.steps for step in self.checkpoints),
            f"checkpoints must lie between 0 and {self.steps} steps, not {self.checkpoints}.",
        )
        if self.method == "lora":
            _require(bool(self.rank and self.rank > 0), "a LoRA recipe needs a rank of 1 or more.")
            _require(bool(self.alpha and self.alpha > 0), "a LoRA recipe needs a positive alpha.")
            _require(self.trainable != "all", 'LoRA trains "blocks" or named modules only.')
        else:
            _require(
                self.rank is None and self.alpha is None,
                "rank and alpha belong to LoRA; leave them out of a full fine-tuning recipe.",
            )

    @classmethod
    def lora(cls, *, rank: int, alpha_lr: float, **rest: Any) -> Recipe:
        """LoRA by the paper's protocol: alpha = 2 rank, and alpha * lr the same for every rank."""
        _require(rank >= 1, "a LoRA recipe needs a rank of 1 or more.")
        alpha = 2.0 * rank
        return cls(method="lora", rank=rank, alpha=alpha, lr=alpha_lr / alpha, **rest)

    def modules(self, model: Any) -> list[str]:
        """The linear layers that `trainable` names by parts; none where it is "blocks" or "all".
        Raises WorkbenchError for a part that no linear layer's name holds."""
        if isinstance(self.trainable, str):
            return []
        linear = [
            name for name, module in model.named_modules()
            if getattr(getattr(module, "weight", None), "ndim", 0) == 2
            and not isinstance(module, Embedding)
        ]  # fmt: skip
        for part in self.trainable:
            found = any(f".{part}." in f".{name}." for name in linear)
            _require(
                found, f"no linear layer of this model is called {part!r}; it has {linear[0]}."
            )
        return [n for n in linear if any(f".{part}." in f".{n}." for part in self.trainable)]

    @property
    def alpha_lr(self) -> float:
        """alpha * lr; NaN for full fine-tuning."""
        return self.alpha * self.lr if self.alpha else float("nan")

    def learning_rate(self, step: int) -> float:
        """The rate used for update `step` (0-based): linear up over the warm-up, linear to 0."""
        ramp = math.ceil(self.warmup * self.steps)
        if step < ramp:
            return self.lr * (step + 1) / ramp
        return self.lr * (self.steps - step) / (self.steps - ramp)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON keeps them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """What `as_dict` gave; raises on unknown names."""
        unknown = values.keys() - {f.name for f in fields(cls)}
        _require(not unknown, f"unknown entries {sorted(unknown)}.")
        return cls(**values)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise WorkbenchError(f"Training recipe: {message}")
