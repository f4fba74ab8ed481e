"""A cut-off run ends in the uninterrupted run's weights, and only what should move moves."""

import importlib
import itertools
import json
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import workbench as wb
from workbench import tasks
from workbench.errors import WorkbenchError
from workbench.integrations import Watch
from workbench.lab.build import scaled
from workbench.lab.data import Batches, Example, fingerprint, prepare
from workbench.lab.recipe import Recipe
from workbench.lab.train import batch_loss, step_loss, train
from workbench.loaders import Checkpoint
from workbench.results import run_folder

FULL = Recipe(task="boxes", method="full", lr=1e-2, steps=6, batch_size=4, evaluate_every=2)
LORA = Recipe.lora(task="boxes", rank=2, alpha_lr=0.1, steps=6, batch_size=4, checkpoints=(2, 4))


@pytest.fixture(scope="module")
def texts():
    return tasks.boxes(40, seed=0, split="train")


# What `fingerprint` gave before the loss "answers" came; finished members are known by it.
DIGESTS = {"sequence": "dbea0c7a45feb229", "answer": "1e5f85361d091304"}


class Cut(Exception):
    pass


def cut_at(step):
    """An evaluation that breaks the run off the first time it is called after `step` steps."""
    calls = []

    def evaluate(model, tokenizer):
        calls.append(len(calls))
        if len(calls) == step // 2 + 1:
            raise Cut
        return {"task": 0.5}

    return evaluate


def test_resumed_run_equals_uninterrupted_run_bit_for_bit(base_folder, texts, tmp_path) -> None:
    whole = train(base_folder, FULL, texts, tmp_path / "whole", evaluate=lambda *_: {"task": 0.5})
    with pytest.raises(Cut):
        train(base_folder, FULL, texts, tmp_path / "cut", evaluate=cut_at(4), save_every=1)
    assert not (tmp_path / "cut").exists()
    cut = train(base_folder, FULL, texts, tmp_path / "cut", evaluate=lambda *_: {"task": 0.5})
    a, b = load_file(whole / "model.safetensors"), load_file(cut / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)
    logs = [[json.loads(x) for x in (f / "log.jsonl").open()] for f in (whole, cut)]
    assert logs[0] == logs[1]
    assert [entry["step"] for entry in logs[0]] == [0, 2, 4, 6]


def test_resumed_lora_equals_uninterrupted_lora(base_folder, texts, tmp_path) -> None:
    whole = train(base_folder, LORA, texts, tmp_path / "whole")
    recipe = Recipe.from_dict(LORA.as_dict() | {"evaluate_every": 2})
    with pytest.raises(Cut):
        train(base_folder, recipe, texts, tmp_path / "cut", evaluate=cut_at(4), save_every=2)
    cut = train(base_folder, recipe, texts, tmp_path / "cut", evaluate=lambda *_: {})
    a, b = (load_file(f / "adapter_model.safetensors") for f in (whole, cut))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_same_recipe_gives_the_same_fingerprint(base_folder, texts, tmp_path) -> None:
    """The modules are written in order: as a set they come in another one in every process."""
    made = [train(base_folder, LORA, texts, tmp_path / name) for name in ("one", "two")]
    first, second = (Checkpoint.parse(f"{base_folder}+{folder}") for folder in made)
    assert first.fingerprint == second.fingerprint
    configs = [(folder / "adapter_config.json").read_text() for folder in made]
    assert configs[0] == configs[1]
    names = json.loads(configs[0])["target_modules"]
    assert len(names) > 1
    assert names == sorted(names)
    steps = json.loads((made[0] / "steps/step-000002/adapter_config.json").read_text())
    assert steps["target_modules"] == names


def test_ctrl_c_saves_where_it_is_and_the_same_call_goes_on_from_there(
    base_folder, texts, tmp_path, capsys
) -> None:
    """Long before the first state that save_every would write."""

    def interrupted(model, tokenizer):
        scores = {"task": 0.5}
        if next(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return scores

    calls, before = itertools.count(), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(base_folder, FULL, texts, tmp_path / "cut", evaluate=interrupted)
    assert signal.getsignal(signal.SIGINT) is before
    assert "cut stopped at step 2 of 6" in capsys.readouterr().err
    cut = train(base_folder, FULL, texts, tmp_path / "cut", evaluate=lambda *_: {"task": 0.5})
    assert "cut resumes from step 2 of 6" in capsys.readouterr().err
    whole = train(base_folder, FULL, texts, tmp_path / "whole", evaluate=lambda *_: {"task": 0.5})
    a, b = load_file(whole / "model.safetensors"), load_file(cut / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("recipe", [LORA, FULL], ids=["lora", "full"])
def test_a_watched_run_is_the_unwatched_one(recipe, base_folder, texts, tmp_path) -> None:
    """Bit for bit, and its curve ends at the model that is written."""
    plain = train(base_folder, recipe, texts, tmp_path / "plain")
    watched = train(
        base_folder, recipe, texts, tmp_path / "made", watch=watching(base_folder, tmp_path)
    )
    ours, theirs = (next(one.glob("*.safetensors")).read_bytes() for one in (plain, watched))
    assert ours == theirs
    kept = run_folder.load(tmp_path / "curves")["spectral.delta_spectrum.steps"]
    assert kept.members == ["step 2", "step 4", "step 6"]
    again = wb.spectral.delta_spectrum(wb.load_pair(base_folder, watched)).metric("norm")
    last = kept.metric("norm").query("member == 'step 6'")
    np.testing.assert_allclose(last["value"], again["value"], rtol=1e-3)


def test_a_watch_ends_a_run(base_folder, texts, tmp_path) -> None:
    made = train(base_folder, replace(LORA, steps=50), texts, tmp_path / "made",
                 watch=watching(base_folder, tmp_path, stop="relative_norm > 0"))  # fmt: skip
    assert json.loads((made / "training.json").read_text())["step"] == 2
    with pytest.raises(WorkbenchError, match="a watch ended at step 2 of 50"):
        train(base_folder, replace(LORA, steps=50), texts, tmp_path / "made")


def watching(base, folder, **more):
    given = {"every": 2, "budget": 1e9, "analyses": ("spectral.delta_spectrum",)}
    return Watch(base, folder / "curves", **(given | more))


def test_a_state_is_saved_every_minute(base_folder, texts, tmp_path, monkeypatch) -> None:
    """Here every step takes longer than what a minute stands for."""
    module = importlib.import_module("workbench.lab.train")
    monkeypatch.setattr(module, "SECONDS", 0.0)
    with pytest.raises(Cut):
        train(base_folder, FULL, texts, tmp_path / "cut", evaluate=cut_at(4))
    state = torch.load(tmp_path / ".cut.training" / "state.pt", weights_only=True)
    assert state["step"] == 3


@pytest.mark.parametrize("place", ["out", ".out.training"])
def test_a_folder_of_somebody_is_refused_before_anything_is_read(place, texts, tmp_path) -> None:
    (tmp_path / place).mkdir()
    (tmp_path / place / "thesis.tex").write_text("mine")
    with pytest.raises(WorkbenchError, match="does not hold"):
        train(tmp_path / "no model", FULL, texts, tmp_path / "out")
    assert (tmp_path / place / "thesis.tex").read_text() == "mine"


def test_full_changes_the_matrices_of_the_blocks_and_nothing_else(
    base_folder, texts, tmp_path
) -> None:
    out = train(base_folder, FULL, texts, tmp_path / "full")
    before, after = (load_file(f / "model.safetensors") for f in (base_folder, out))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {n for n in before if ".layers." in n and before[n].ndim == 2}


def test_adapter_names_its_base_by_a_relative_path_and_checkpoints_tell_their_step(
    base_folder, texts, tmp_path
) -> None:
    shutil.copytree(base_folder, tmp_path / "base")
    out = train(tmp_path / "base", LORA, texts, tmp_path / "lora")
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "../base"
    step = out / "steps" / "step-000002"
    config = json.loads((step / "adapter_config.json").read_text())
    assert (step / config["base_model_name_or_path"]).resolve() == (tmp_path / "base").resolve()
    assert json.loads((step / "training.json").read_text())["step"] == 2
    assert json.loads((out / "training.json").read_text())["step"] == 6
    matrices = [n for n in load_file(tmp_path / "base" / "model.safetensors") if ".proj" in n]
    adapters = load_file(out / "adapter_model.safetensors")
    assert len(adapters) == 2 * 7 * 2, matrices


def test_a_loaded_model_is_left_as_it_was_and_a_tokenizer_is_asked_for(
    base_folder, texts, tmp_path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(WorkbenchError, match="tokenizer"):
        train(model, LORA, texts, tmp_path / "x")
    words = AutoTokenizer.from_pretrained(base_folder)
    train(model, LORA, texts, tmp_path / "x", tokenizer=words)
    assert before.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_finished_member_is_kept_and_another_recipe_is_refused(
    base_folder, texts, tmp_path
) -> None:
    out = train(base_folder, FULL, texts, tmp_path / "m")
    stamp = (out / "model.safetensors").stat().st_mtime_ns
    train(base_folder, FULL, texts, out)
    assert (out / "model.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(WorkbenchError, match="another recipe"):
        train(base_folder, scaled(FULL, 0.5), texts, out)
    with pytest.raises(WorkbenchError, match="another texts"):
        train(base_folder, FULL, texts.prompts[:8], out)


def test_answer_loss_counts_the_target_alone(base_folder, words, texts) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    examples = prepare(words, texts, "answer", 256)[:4]
    batch = Batches(examples, 4, seed=0, fill=0)[0]
    assert (batch["labels"] != -100).sum().item() == 4
    loss = batch_loss(model, batch, "float32").item()
    scored = tasks.answers(model, words, texts.prompts[:4])
    # One pool draws each of the four texts the same number of times, but not in every batch.
    rows = [examples.index(Example(r[: int(m.sum())].tolist(), int(m.sum()) - 1))
            for r, m in zip(batch["input_ids"], batch["attention_mask"], strict=True)]  # fmt: skip
    assert loss == pytest.approx(-scored.log_probability.iloc[rows].mean(), abs=1e-5)
    with pytest.raises(WorkbenchError, match="plain texts"):
        prepare(words, texts.texts, "answer", 256)


def test_answers_loss_counts_every_answer_of_a_text_and_the_whole_of_texts_without(words) -> None:
    asked = tasks.boxes(5, seed=0, questions=4, again=True, filler=None)
    plain = tasks.facts(5, seed=0)
    examples = prepare(words, [*asked, *plain], "answers", 256)
    batch = Batches(examples, 10, seed=0, fill=0)[0]
    texts = {p.text: p for p in (*asked, *plain)}
    for ids, mask, labels in zip(*batch.values(), strict=True):
        prompt = texts[words.decode(ids[mask == 1], skip_special_tokens=True)]
        counted = words.convert_ids_to_tokens(labels[labels != -100].tolist())
        if prompt.template == "boxes":
            told = [prompt.prompt[slice(*prompt.spans[f"answer {i}"])] for i in (1, 2, 3)]
            assert counted == [*told, prompt.target.strip()]
            assert torch.equal(labels[labels != -100], ids[labels != -100])
        else:
            assert counted == prompt.text.split()


def test_fingerprints_without_further_answers_are_what_they_were(words, texts) -> None:
    for loss, digest in DIGESTS.items():
        assert fingerprint(prepare(words, texts, loss, 256))[:16] == digest


def test_forgetting_descends_on_the_retained_loss_and_climbs_the_forgotten(
    base_folder, words, texts
) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    kept = Batches(prepare(words, texts, "sequence", 256), 4, seed=0, fill=0)[0]
    lost = Batches(prepare(words, tasks.facts(8), "answer", 256), 4, seed=0, fill=0)[0]

    def gradient(loss):
        return torch.autograd.grad(loss, list(model.parameters()))

    whole = gradient(step_loss(model, kept, lost, "float32"))
    retained, forgotten = (gradient(batch_loss(model, b, "float32")) for b in (kept, lost))
    for g, up, down in zip(whole, retained, forgotten, strict=True):
        torch.testing.assert_close(g, up - down)
    assert torch.equal(step_loss(model, kept, None, "float32"), batch_loss(model, kept, "float32"))


def test_a_member_forgets_what_it_is_told_to(base_folder, words, texts, tmp_path) -> None:
    people = tasks.facts(8, seed=0)
    recipe = Recipe(task="x", method="full", lr=1e-2, steps=8, batch_size=4)
    out = train(base_folder, recipe, texts, tmp_path / "unlearned", forget=people)
    means = [
        tasks.answers(AutoModelForCausalLM.from_pretrained(f), words, people).log_probability.mean()
        for f in (base_folder, out)
    ]
    assert means[1] < means[0]
    with pytest.raises(WorkbenchError, match="another forget"):
        train(base_folder, recipe, texts, out)


def test_a_recipe_from_before_an_entry_existed_has_its_default(
    base_folder, texts, tmp_path
) -> None:
    out = train(base_folder, FULL, texts, tmp_path / "m")
    about = json.loads((out / "training.json").read_text())
    del about["recipe"]["beta2"]
    (out / "training.json").write_text(json.dumps(about))
    assert train(base_folder, FULL, texts, out) == out


def test_batches_depend_on_the_step_alone_and_visit_every_text_once_an_epoch() -> None:
    examples = [Example([1, i], 1) for i in range(2, 66)]
    first, second = (Batches(examples, 4, seed=3, fill=0) for _ in range(2))
    backwards = [second[s]["input_ids"] for s in reversed(range(16))][::-1]
    forwards = [first[s]["input_ids"] for s in range(16)]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert sorted(torch.cat(forwards)[:, 1].tolist()) == list(range(2, 66))
    other = Batches(examples, 4, seed=4, fill=0)
    assert not all(torch.equal(forwards[s], other[s]["input_ids"]) for s in range(16))
