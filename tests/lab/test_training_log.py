"""What is watched along a run, against plain torch; and a run of chosen modules moves those."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from workbench import tasks
from workbench.errors import WorkbenchError
from workbench.lab.data import batches, prepare
from workbench.lab.recipe import Recipe
from workbench.lab.train import batch_loss, train, trainable
from workbench.lab.training_log import TrainingLog, by_component
from workbench.loaders import Checkpoint

FULL = Recipe(task="boxes", method="full", lr=1e-2, steps=4, batch_size=4, evaluate_every=2)


@pytest.fixture(scope="module")
def texts():
    return tasks.boxes(24, seed=0, split="train")


def begun(base_folder, texts, recipe):
    """A model as training gives it, and the run's batches."""
    own = Checkpoint.parse(base_folder)
    words = own.tokenizer()
    examples = prepare(words, texts, recipe.loss, recipe.max_length)
    torch.manual_seed(recipe.seed)
    model = trainable(own.load(dtype=torch.float32), recipe)
    return model, batches(examples, recipe.batch_size, recipe.seed, words)


def test_gradient_norms_are_the_root_mean_square_of_all_layers(base_folder, texts, tmp_path):
    model, source = begun(base_folder, texts, FULL)
    watch = TrainingLog(model, source[0], "float32", tmp_path)
    watch.begin()
    squares = []
    for step in range(2):
        model.zero_grad()
        with torch.enable_grad():
            batch_loss(model, source[step], "float32").backward()
        watch.step()
        own = [p.grad for n, p in model.named_parameters() if n.endswith("q_proj.weight")]
        squares.append(float(sum(g.square().sum() for g in own)))
    told = watch.told()
    mean = (sum(squares) / 2) ** 0.5
    assert told["gradient_norm"]["self_attn.q_proj"] == pytest.approx(mean, rel=1e-5)
    assert set(told["gradient_norm"]) == set(by_component(model))
    assert "gradient_norm" not in watch.told()  # no step since


def test_entropy_and_kl_by_torch_and_nothing_moved_is_nothing(base_folder, texts, tmp_path):
    model, source = begun(base_folder, texts, FULL)
    watch = TrainingLog(model, source[0], "float32", tmp_path)
    watch.begin()
    first = watch.told()
    assert first["kl"] == 0
    batch = source[0]

    def predicted():
        with torch.no_grad():
            out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return out[:, :-1][batch["labels"][:, 1:] != -100][:256].double().log_softmax(-1)

    start = predicted()
    assert first["entropy"] == pytest.approx(float(-(start.exp() * start).sum(-1).mean()), rel=1e-5)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)
    now = predicted()
    kl = float((start.exp() * (start - now)).sum(-1).mean())
    assert watch.told()["kl"] == pytest.approx(kl, rel=1e-4)


def test_every_line_of_the_log_has_it_and_the_start_is_not_left(base_folder, texts, tmp_path):
    out = train(base_folder, FULL, texts, tmp_path / "out", evaluate=lambda *_: {"task": 0.5})
    lines = [json.loads(line) for line in (out / "log.jsonl").open()]
    assert [line["kl"] for line in lines[:1]] == [0]
    assert all(line["kl"] > 0 and line["gradient_norm"] for line in lines[1:])
    assert all(line["entropy"] > 0 and line["task"] == 0.5 for line in lines)
    assert not (out / "start.pt").exists()


def test_factors_of_a_lora_are_watched_apart(base_folder, texts):
    model, _ = begun(base_folder, texts, Recipe.lora(task="t", rank=2, alpha_lr=0.1, steps=4))
    names = set(by_component(model))
    assert {"self_attn.q_proj.lora_A", "self_attn.q_proj.lora_B"} <= {
        name.split("layers.")[-1] for name in names
    }


@pytest.mark.parametrize("method", ["full", "lora"])
def test_only_the_named_modules_move(method, base_folder, texts, tmp_path):
    named = {"trainable": ("mlp.down_proj", "layers.1.self_attn"), "evaluate_every": 0}
    lora = {"rank": 2, "alpha": 4.0} if method == "lora" else {}
    recipe = Recipe(task="boxes", method=method, lr=1e-2, steps=2, batch_size=4, **named, **lora)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe
    out = train(base_folder, recipe, texts, tmp_path / "out")
    if method == "lora":
        moved = {
            n.split("layers.")[1].split(".lora")[0]
            for n in load_file(out / "adapter_model.safetensors")
        }
    else:
        before, after = (load_file(f / "model.safetensors") for f in (base_folder, out))
        moved = {
            n.split("layers.")[1].removesuffix(".weight")
            for n, tensor in after.items() if not torch.equal(tensor, before[n])
        }  # fmt: skip
    layers = Checkpoint.parse(base_folder).config["num_hidden_layers"]
    wanted = {f"{layer}.mlp.down_proj" for layer in range(layers)}
    assert moved == wanted | {f"1.self_attn.{one}_proj" for one in "qkvo"}


def test_a_module_that_is_not_there_is_refused(base_folder, texts, tmp_path):
    recipe = Recipe.from_dict(FULL.as_dict() | {"trainable": ["experts"]})
    with pytest.raises(WorkbenchError, match="no linear layer of this model is called 'experts'"):
        train(base_folder, recipe, texts, tmp_path / "out")
