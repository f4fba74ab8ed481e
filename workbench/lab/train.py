"""How does a base become a member? One short training loop for full fine-tuning and LoRA."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from workbench.errors import WorkbenchError, reason
from workbench.files.reading import read_json
from workbench.files.writing import OWN, Mark, holds, replacing, require_free, writing
from workbench.lab.data import Batches, batches, fingerprint, prepare
from workbench.lab.recipe import Recipe
from workbench.lab.training_log import TrainingLog
from workbench.loaders.adapters import read_adapter
from workbench.loaders.checkpoint import Checkpoint
from workbench.log import log
from workbench.progress import progress
from workbench.tasks.prompts import Prompt, PromptSet

# A member is never trained over: it is kept, where it is of the same recipe.
MEMBER = Mark("a trained model", lambda folder: (folder / "training.json").is_file())
STATE = Mark(
    "the saved state of a training run",
    holds("state.pt", "start.pt", "log.jsonl", "steps", marked=lambda _: True),
)
SAVE_EVERY, SECONDS = 200, 60.0  # steps and time between saved states
Evaluate = Callable[[Any, Any], dict[str, float]]


class Watching(Protocol):
    """What a run calls of `workbench.integrations.Watch`."""

    @property
    def stopped(self) -> bool: ...
    def step(self, model: Any, step: int) -> Any: ...
    def finish(self, model: Any, step: int) -> Any: ...


def train(
    base: str | Path | Any,
    recipe: Recipe,
    texts: PromptSet | Sequence[Prompt] | Sequence[str],
    out: str | Path,
    *,
    forget: PromptSet | Sequence[Prompt] | None = None,
    start: str | Path | None = None,
    tokenizer: Any = None,
    evaluate: Evaluate | None = None,
    device: str | torch.device | None = None,
    save_every: int = SAVE_EVERY,
    compiled: bool = False,
    watch: Watching | None = None,
) -> Path:
    """Fine-tune one model and write it to the folder `out`; returns `out`.

    base: a model folder or hub id, or a loaded causal LM (then give its tokenizer; the given model
    stays unchanged). forget: prompts whose answers the model shall lose; a batch of them is added
    to every batch of texts (see `step_loss`). start: the folder of a member of the recipe's method
    to continue from; for an adapter, its factors are trained further. evaluate: (model, tokenizer)
    -> scores, called before the first step, every `recipe.evaluate_every` steps and at the end.
    save_every: steps between saved states, of which there is one a minute at least, and one on
    ctrl-C; an interrupted run resumes from its last one, logs this, and ends in the same weights.
    compiled: run the steps through torch.compile, which pays off after some thousand steps. watch:
    a `workbench.integrations.Watch`, which measures the model while it is trained and may end the
    run early; the weights are those of a run without.

    `out` holds a transformers model with its tokenizer, or a PEFT adapter, training.json (recipe,
    step, seed, scores), log.jsonl (at every evaluation the loss, the scores and what `TrainingLog`
    tells: gradient norms by component, entropy, KL from the start), and steps/step-000500/ and so
    on, each with a training.json of its own. An adapter names its base by the path from its own
    folder. Raises before any work where `out` holds anything but such a member, or one of another
    recipe or other texts, and where the loss is no longer finite.
    """
    out = Path(out)
    require_free(out, MEMBER)
    require_free(_work(out), STATE)
    whole = recipe.method == "full" and start is not None
    model, tokenizer, reference = _load(start if whole else base, tokenizer)
    examples = prepare(tokenizer, texts, recipe.loss, recipe.max_length)
    run = {"recipe": recipe.as_dict(), "texts": fingerprint(examples)}
    losing = prepare(tokenizer, forget, "answer", recipe.max_length) if forget else []
    if losing:
        run["forget"] = fingerprint(losing)
    if start is not None:
        run["start"] = Checkpoint.parse(start).fingerprint
    if (out / "training.json").is_file():
        _same_run(run, read_json(out / "training.json"), out)
        return out
    torch.manual_seed(recipe.seed)
    model = trainable(model, recipe)
    if start is not None and recipe.method == "lora":
        _factors_of(Path(start), model)
    if device is not None:
        model.to(device)
    source = batches(examples, recipe.batch_size, recipe.seed, tokenizer)
    diary = TrainingLog(model, source[0], recipe.precision, _work(out))
    member = _Member(model, tokenizer, reference, run, out, diary)
    member.work.mkdir(parents=True, exist_ok=True)
    lost = batches(losing, recipe.batch_size, recipe.seed, tokenizer) if losing else None
    done = _loop(member, recipe, source, lost, evaluate, save_every, compiled, watch)
    member.finish(done)
    return out


def _work(out: Path) -> Path:
    """Where a member is while it is trained."""
    return out.parent / f".{out.name}.training"


def trainable(model: Any, recipe: Recipe) -> Any:
    """Freeze what the recipe leaves alone; for LoRA, add the adapters. Returns the model to run.

    Call torch.manual_seed first: the adapters' initialisation is drawn here.
    """
    if recipe.method == "lora":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=recipe.rank,  # pyright: ignore[reportArgumentType]
            lora_alpha=recipe.alpha,  # pyright: ignore[reportArgumentType]
            lora_dropout=0.0,
            target_modules=recipe.modules(model) or "all-linear",
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config)
    chosen = recipe.modules(model)
    model.requires_grad_(not chosen)
    for name in chosen:
        model.get_submodule(name).requires_grad_(True)
    if recipe.trainable == "blocks":
        still = {id(p) for m in (model.get_output_embeddings(),) if m for p in m.parameters()}
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                still |= {id(p) for p in module.parameters()}
        for parameter in model.parameters():
            if parameter.ndim < 2 or id(parameter) in still:
                parameter.requires_grad_(False)
    return model


def batch_loss(model: Any, batch: dict[str, torch.Tensor], precision: str) -> torch.Tensor:
    """Mean loss over the batch's labelled tokens, in nats; scalar."""
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits
    counted = batch["labels"][:, 1:] != -100
    return F.cross_entropy(logits[:, :-1][counted].float(), batch["labels"][:, 1:][counted])


def step_loss(
    model: Any,
    batch: dict[str, torch.Tensor],
    lost: dict[str, torch.Tensor] | None,
    precision: str,
) -> torch.Tensor:
    """`batch_loss` of the batch, less that of a batch of answers to lose; scalar.

    The difference is what gradient-difference unlearning descends on (Liu et al. 2022, arXiv
    2203.12817; Maini et al. 2024, arXiv 2401.06121).
    """
    kept = batch_loss(model, batch, precision)
    return kept if lost is None else kept - batch_loss(model, lost, precision)


def updates(model: Any, recipe: Recipe, source: Batches) -> Iterator[int]:
    """Train `model`, as `trainable` gave it, in place by AdamW at a constant rate; the number of
    steps done, after each of them."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    for step in range(recipe.steps):
        with torch.enable_grad():
            batch_loss(model, source[step], recipe.precision).backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield step + 1


def _loop(
    member: _Member,
    recipe: Recipe,
    source: Batches,
    lost: Batches | None,
    evaluate: Evaluate | None,
    save_every: int,
    compiled: bool,
    watch: Watching | None,
) -> int:
    """Returns how many steps were done: all, unless the watch ended the run."""
    model = member.model
    run = torch.compile(model, dynamic=True) if compiled else model
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=recipe.lr,
        betas=(0.9, recipe.beta2),
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    start, mean = member.resume(optimizer)
    done = start
    if start == 0:
        member.log(0, None, evaluate)
    else:
        log.info("%s resumes from step %d of %d.", member.out, start, recipe.steps)
    bar = progress(
        range(start, recipe.steps),
        initial=start,
        total=recipe.steps,
        desc=f"{recipe.task} {member.out.name}",
    )
    saved = time.monotonic()
    with _deferred() as asked:
        for step in bar:
            model.train()
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate(step)
            loss = step_loss(run, source[step], lost[step] if lost else None, recipe.precision)
            loss.backward()
            member.diary.step()
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done, value = step + 1, loss.item()
            if not torch.isfinite(loss):
                raise WorkbenchError(
                    f"The loss is {value} at step {done}; lower the learning rate ({recipe.lr})."
                )
            mean = value if mean is None else 0.98 * mean + 0.02 * value
            if watch is not None:
                watch.step(model, done)
            last = done == recipe.steps or (watch is not None and watch.stopped)
            if last or (recipe.evaluate_every and done % recipe.evaluate_every == 0):
                member.log(done, mean, evaluate)
            bar.set_postfix(loss=f"{mean:.3f}", score=member.scores.get("task"))
            if done in recipe.checkpoints:
                member.keep(done)
            due = done % save_every == 0 or time.monotonic() - saved > SECONDS
            if due or last or asked:
                member.save_state(done, mean, optimizer)
                saved = time.monotonic()
            if asked and not last:
                log.warning("%s stopped at step %d of %d.", member.out, done, recipe.steps)
                raise KeyboardInterrupt
            if last:
                break
    if watch is not None:
        watch.finish(model, done)
    return done


@contextlib.contextmanager
def _deferred() -> Iterator[list[int]]:
    """ctrl-C is put into a list, to be obeyed where a state can be saved; a second one acts at
    once. Only the main thread is told of it at all."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


class _Member:
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
        self.work = _work(out)
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
        _same_run(self.run, state["run"], self.work)
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


def _factors_of(folder: Path, model: Any) -> None:
    """Give a PEFT model the factors of an adapter of the same shape."""
    from peft import set_peft_model_state_dict

    given = dict(read_adapter(folder).weights)
    found = set_peft_model_state_dict(model, given)
    missing = [name for name in found.missing_keys if "lora_" in name]
    if missing or found.unexpected_keys:
        raise WorkbenchError(
            f"The adapter {folder} does not fit this recipe: {len(missing)} of its factors are "
            f"missing and {len(found.unexpected_keys)} are not of this model; start from an "
            "adapter of the same rank and modules."
        )


def _load(base: str | Path | Any, tokenizer: Any) -> tuple[Any, Any, str]:
    """(model, tokenizer, reference); a loaded model is copied."""
    if isinstance(base, str | Path):
        own = Checkpoint.parse(base)
        if own.adapter is not None:
            raise WorkbenchError(f"{base} is an adapter; merge it into whole weights to train on.")
        model: Any = own.load(dtype=torch.float32)
        model.set_attn_implementation("eager")
        return model, tokenizer or own.tokenizer(), str(base)
    if tokenizer is None:
        raise WorkbenchError("A model in memory needs its tokenizer too; pass tokenizer=.")
    return copy.deepcopy(base), tokenizer, str(base.config._name_or_path or "base")


def _same_run(ours: dict[str, Any], theirs: dict[str, Any], place: Path) -> None:
    # A recipe written before it had all of today's entries has their default values.
    theirs = theirs | {"recipe": Recipe.from_dict(theirs["recipe"]).as_dict()}
    for what in ("recipe", "texts", "forget"):
        if ours.get(what) != theirs.get(what):
            raise WorkbenchError(
                f"{place} holds a training run with another {what}; remove the folder "
                "or choose another one."
            )
