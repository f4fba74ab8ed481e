"""How does a base become a member? One short training loop for full fine-tuning and LoRA."""

from __future__ import annotations

import contextlib
import copy
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from workbench.errors import WorkbenchError
from workbench.files.reading import read_json
from workbench.files.writing import require_free
from workbench.lab.data import Batches, batches, fingerprint, prepare
from workbench.lab.member_in_training import (
    MEMBER,
    STATE,
    Evaluate,
    Member,
    require_same_run,
    work_folder,
)
from workbench.lab.recipe import Recipe
from workbench.lab.training_log import TrainingLog
from workbench.loaders.adapters import read_adapter
from workbench.loaders.checkpoint import Checkpoint
from workbench.log import log
from workbench.progress import progress
from workbench.tasks.prompts import Prompt, PromptSet

SAVE_EVERY, SECONDS = 200, 60.0  # steps and time between saved states


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
    run early; up to there the weights are those of a run without it.

    `out` holds a transformers model with its tokenizer, or a PEFT adapter, training.json (recipe,
    step, seed, scores), log.jsonl (at every evaluation the loss, the scores and what `TrainingLog`
    tells: gradient norms by component, entropy, KL from the start), and steps/step-000500/ and so
    on, each with a training.json of its own. An adapter names its base by the path from its own
    folder. Raises before any work where `out` holds anything but such a member, or one of another
    recipe or other texts, and where the loss is no longer finite.
    """
    out = Path(out)
    require_free(out, MEMBER)
    require_free(work_folder(out), STATE)
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
        known = read_json(out / "training.json")
        require_same_run(run, known, out)
        done = known.get("step", recipe.steps)
        if done < recipe.steps and watch is None:
            raise WorkbenchError(
                f"{out} holds a run that a watch ended at step {done} of {recipe.steps}; remove "
                "the folder or choose another one."
            )
        return out
    torch.manual_seed(recipe.seed)
    model = trainable(model, recipe)
    if start is not None and recipe.method == "lora":
        _factors_of(Path(start), model)
    if device is not None:
        model.to(device)
    source = batches(examples, recipe.batch_size, recipe.seed, tokenizer)
    diary = TrainingLog(model, source[0], recipe.precision, work_folder(out))
    member = Member(model, tokenizer, reference, run, out, diary)
    member.work.mkdir(parents=True, exist_ok=True)
    lost = batches(losing, recipe.batch_size, recipe.seed, tokenizer) if losing else None
    done = _loop(member, recipe, source, lost, evaluate, save_every, compiled, watch)
    member.finish(done)
    return out


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
    member: Member,
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
