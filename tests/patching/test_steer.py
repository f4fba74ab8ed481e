"""Steering: the null of scale 0, a behaviour that one direction decides, numbers by plain torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

import workbench as wb
from tests.conftest import nudged
from tests.patching.conftest import boxes, model, paired, write
from tests.skills.conftest import APPLE, LAYER, PLACES, asked, mute, planted, token
from workbench.models import Site
from workbench.patching import Direction
from workbench.patching.direction import equals, without
from workbench.stats import halves
from workbench.tasks.batching import encode

BEHIND = "resid_post"


def one(result: wb.results.Result, metric: str, **where: object) -> float:
    rows = result.metric(metric)
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    assert len(rows) == 1, rows
    return float(rows["value"].iloc[0])


def adapted(folder: Path) -> wb.CheckpointPair:
    """A LoRA of every down projection, of random factors."""
    write(model(), folder / "base")
    made = get_peft_model(model(), LoraConfig(r=2, target_modules=["down_proj"]))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape))
    made.save_pretrained(str(folder / "lora"))
    return wb.load_pair(folder / "base", folder / "lora")


def test_a_planted_direction_steers_and_its_ablation_takes_the_skill_away(tmp_path):
    """The member's only change writes APPLE where a text ends with "in": behind its layer the
    direction is APPLE's axis alone, at scale 1 the base says what the tuned model says, bit by bit
    up to rounding, and without it the tuned model says the base's word again."""
    pair = planted(tmp_path, {(APPLE, PLACES): 4.0})
    prompts = asked(PLACES, "apple", n=12)
    found = wb.patching.steer(pair, prompts, scales=(0.0, 1.0), shown=2, length=1)
    assert one(found, "score", arm="base") == 0
    assert one(found, "score", arm="tuned") == 1
    direction = Direction.of(found, pair.name, LAYER)
    others = np.delete(direction.vector, APPLE)
    assert direction.vector[APPLE] > 0.1
    np.testing.assert_allclose(others, 0, atol=1e-6)
    before = Direction.of(found, pair.name, LAYER - 1)
    assert before.norm == 0
    where = {"layer": LAYER, "x": 1.0}
    assert one(found, "score", arm="steered", **where) == 1
    assert one(found, "kl_tuned", arm="steered", **where) == pytest.approx(0, abs=1e-4)
    assert one(found, "score", arm="random", **where) < 0.5
    assert one(found, "score", arm="ablated", layer=LAYER) == 0
    assert one(found, "score", arm="ablated random", layer=LAYER) == 1
    assert one(found, "score", arm="steered", layer=LAYER - 1, x=1.0) == 0
    best = found.metric("score")[found.metric("score")["arm"] == "best"].iloc[0]
    assert best["layer"] >= LAYER
    assert (best["x"], best["value"]) == (1, 1)
    assert one(found, "beyond_random:log_probability", arm="best") > 0.5
    said = found.metric("text").groupby("arm")["text"].unique()
    assert [*said["steered"]] == [*said["tuned"]]
    assert all("apple" in text for text in said["steered"])
    assert all("coin" in text for text in said["base"])


def test_scale_zero_is_the_base_bit_for_bit(tmp_path):
    pair = adapted(tmp_path)
    prompts = [f"the cup {i} is in" for i in range(6)]
    found = wb.patching.steer(pair, prompts, scales=(0.0, 3.0), random=2, shown=2, length=4)
    table = found.table[found.table["x"].eq(0) & found.table["arm"].isin(["steered", "random"])]
    for metric in ("score", "log_probability", "kl_tuned"):
        base = one(found, metric, arm="base")
        np.testing.assert_allclose(table.loc[table["metric"] == metric, "value"], base, rtol=1e-5)
    moved = found.metric("kl_tuned")
    moved = moved[(moved["x"] == 3) & (moved["layer"] == 2) & (moved["arm"] == "steered")]
    assert abs(float(moved["value"].iloc[0]) - one(found, "kl_tuned", arm="base")) > 1e-4


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_more_of_the_change_by_plain_torch(kind: str, tmp_path: Path, caplog):
    """Weights of base and tuned model added by hand; once is the tuned model, no times the base."""
    caplog.set_level("INFO", logger="workbench")
    pair = adapted(tmp_path) if kind == "lora" else paired(model(), nudged(model(), 0.1), tmp_path)
    prompts, words = boxes(8), pair.base.tokenizer()
    found = wb.patching.steer(
        pair,
        prompts,
        layers=(0,),
        scales=(0.0,),
        random=1,
        amplified=(0.0, 1.0, 2.5),
        shown=2,
        length=3,
    )
    assert f"{pair.name}: the base once more: " in caplog.text
    for side, alpha in (("base", 0.0), ("tuned", 1.0)):
        for metric in ("score", "log_probability", "kl_tuned"):
            value = one(found, metric, arm="amplified", x=alpha)
            assert value == pytest.approx(one(found, metric, arm=side), abs=1e-5)
    changes = {delta.site.name: delta.change for delta in pair.deltas("all")}
    more = pair.base.load(dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in more.named_parameters():
            if name in changes:
                parameter += 2.5 * changes[name].reshape(parameter.shape)
    report = np.sort(halves(len(prompts), 0)[1])
    chosen = wb.tasks.PromptSet("half", tuple(prompts[int(i)] for i in report))
    told = wb.tasks.answers(more, words, chosen)["log_probability"].mean()
    assert one(found, "log_probability", arm="amplified", x=2.5) == pytest.approx(told, rel=1e-4)
    assert abs(told - one(found, "log_probability", arm="tuned")) > 1e-3
    written = found.metric("text").set_index(["arm", "x", "prompt"])["text"]
    for prompt in chosen[:2]:
        ids = words(prompt.prompt, return_tensors="pt")
        said = more.generate(**ids, max_new_tokens=3, do_sample=False)[
            0, ids["input_ids"].shape[1] :
        ]
        assert written["amplified", 2.5, prompt.id].split() == words.decode(said).split()
        tuned = found.metric("text").query("arm == 'tuned' and prompt == @prompt.id")["text"].item()
        assert written["amplified", 1.0, prompt.id] == tuned


def test_the_base_against_itself_has_no_direction(tmp_path):
    made = model()
    found = wb.patching.steer(paired(made, made, tmp_path), boxes(6), shown=0)
    assert found.metric("norm")["value"].eq(0).all()
    for metric in ("score", "log_probability", "logit_difference", "kl_tuned"):
        own = found.metric(metric)["value"].to_numpy()
        np.testing.assert_allclose(own, own[0], atol=1e-5)


def test_every_number_by_plain_torch(tmp_path):
    base, tuned = model(), nudged(model(), seed=1)
    pair, prompts, layer, scale = paired(base, tuned, tmp_path), boxes(9, count=None), 1, 1.5
    words = pair.base.tokenizer()
    found = wb.patching.steer(
        pair, prompts, layers=[layer], scales=[scale], random=2, shown=1, length=3, batch_size=4
    )
    pick, report = halves(9, 0)
    coded = [encode(words, prompt) for prompt in prompts]

    def hidden(made, i: int) -> torch.Tensor:
        asked = torch.tensor([coded[i].ids[: coded[i].start]])
        with torch.no_grad():
            return made(asked, output_hidden_states=True).hidden_states[layer + 1][0, -1]

    vector = torch.stack([hidden(tuned, i) - hidden(base, i) for i in pick]).mean(0)
    assert one(found, "norm") == pytest.approx(float(vector.norm()), rel=1e-4)
    size = np.mean([float(hidden(base, i).norm()) for i in pick])
    assert found.metric("norm")["baseline"].iloc[0] == pytest.approx(size, rel=1e-4)

    def logits(made, i: int, change=None) -> torch.Tensor:
        block = made.model.layers[layer]
        hook = block.register_forward_hook(lambda m, a, out: out if change is None else change(out))
        with torch.no_grad():
            out = made(torch.tensor([coded[i].ids[:-1]])).logits[0, coded[i].start - 1 :]
        hook.remove()
        return out

    unit = vector / vector.norm()
    drawn = [torch.from_numpy(one) for one in equals(vector.numpy(), 2, layer)]
    runs = {
        "base": [(base, None)],
        "tuned": [(tuned, None)],
        "steered": [(base, lambda out: out + scale * vector)],
        "random": [(base, lambda out, own=own: out + scale * own) for own in drawn],
        "ablated": [(tuned, lambda out: out - (out @ unit)[..., None] * unit)],
    }
    seen = {}
    for arm, made in runs.items():
        values: dict[str, list[float]] = {}
        for i in report:
            goal = logits(tuned, i).log_softmax(-1)
            answer = torch.tensor(coded[i].ids[coded[i].start :])
            foils = [encode(words, wb.tasks.Prompt("", prompts[i].prompt, f)) for f in
                     prompts[i].foils]  # fmt: skip
            for own in (logits(m, i, change) for m, change in made):
                log_p = own.log_softmax(-1)
                told = {
                    "score": float((own.argmax(-1) == answer).all()),
                    "log_probability": float(log_p.gather(1, answer[:, None]).sum()),
                    "logit_difference": float(
                        own[0, answer[0]] - max(own[0, f.ids[f.start]] for f in foils)
                    ),
                    "kl_tuned": float(F.kl_div(log_p, goal, log_target=True, reduction="sum"))
                    / len(answer),
                }
                for metric, value in told.items():
                    values.setdefault(metric, []).append(value)
        seen[arm] = {metric: float(np.mean(own)) for metric, own in values.items()}
        for metric, value in seen[arm].items():
            assert one(found, metric, arm=arm) == pytest.approx(value, abs=2e-4), (arm, metric)
    gain = seen["steered"]["log_probability"] - seen["random"]["log_probability"]
    assert one(found, "beyond_random:log_probability") == pytest.approx(gain, abs=2e-4)
    first = prompts[int(np.sort(report)[0])]
    ids = torch.tensor([words(first.prompt)["input_ids"]])
    ids = ids[:, :-1] if ids[0, -1] == words.eos_token_id else ids
    said = found.metric("text").set_index("arm")
    hook = base.model.layers[layer].register_forward_hook(lambda m, a, out: out + scale * vector)
    for _ in range(3):
        with torch.no_grad():
            ids = torch.cat([ids, base(ids).logits[:, -1].argmax(-1)[:, None]], 1)
    hook.remove()
    assert said.loc["steered", "text"] == words.decode(ids[0, -3:])
    for _, row in said.iterrows():
        assert row["value"] == float(first.target.strip() in row["text"])


def test_against_other_prompts_the_direction_is_the_bases_own(tmp_path):
    pair = paired(model(), nudged(model(), seed=1), tmp_path)
    other = boxes(5, count=4)
    found = wb.patching.steer(pair, boxes(8), against=other, layers=[2], shown=0)
    words, base = pair.base.tokenizer(), model()

    def behind(prompts) -> np.ndarray:
        kept = []
        hook = base.model.layers[2].register_forward_hook(
            lambda m, a, out: kept.append(out[0, -1].numpy())
        )
        for prompt in prompts:
            own = encode(words, prompt)
            with torch.no_grad():
                base(torch.tensor([own.ids[: own.start]]))
        hook.remove()
        return np.mean(kept, 0)

    own = [boxes(8).prompts[i] for i in halves(8, 0)[0]]
    np.testing.assert_allclose(
        Direction.of(found, pair.name, 2).vector, behind(own) - behind(other), atol=1e-5
    )


def test_a_direction_is_saved_and_loaded_and_no_other_file_overwritten(tmp_path):
    vector = np.arange(32, dtype=np.float32)
    own = Direction("mine", Site(BEHIND, 1), vector)
    path = own.save(tmp_path / "mine.safetensors")
    again = Direction.load(path)
    assert (again.name, again.site) == ("mine", Site(BEHIND, 1))
    np.testing.assert_array_equal(again.vector, vector)
    own.save(path)  # its own kind is replaced
    (tmp_path / "other").write_text("kept")
    with pytest.raises(wb.WorkbenchError):
        own.save(tmp_path / "other")
    assert (tmp_path / "other").read_text() == "kept"
    with pytest.raises(wb.WorkbenchError, match="Expected a saved direction"):
        Direction.load(tmp_path / "other")


def test_adding_is_exact_and_what_is_taken_out_is_gone():
    made, ids = mute(), torch.tensor([[token("in"), token("book")]])
    with torch.no_grad():
        plain = made(ids).logits
        vector = np.zeros(32, np.float32)
        vector[APPLE] = 1
        own = Direction("apple", Site(BEHIND, 2), vector)
        with own.added(made, 0.0):
            assert torch.equal(made(ids).logits, plain)
        with own.added(made, 3.0):
            assert not torch.equal(made(ids).logits, plain)
        assert torch.equal(made(ids).logits, plain)
    stream = torch.randn(2, 3, 8)
    unit = F.normalize(torch.randn(8), dim=0)
    assert without(stream, unit) @ unit == pytest.approx(torch.zeros(2, 3), abs=1e-6)
    torch.testing.assert_close(without(without(stream, unit), unit), without(stream, unit))
    few = Direction("few", Site(BEHIND, 2), np.ones(4, np.float32))
    with pytest.raises(wb.WorkbenchError, match="has 4 numbers"), few.added(made):
        pass


def test_random_directions_have_its_norm_and_not_its_way():
    vector = np.random.default_rng(5).standard_normal(400).astype(np.float32)
    drawn = equals(vector, 5, 0)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), np.linalg.norm(vector), rtol=1e-5)
    assert np.abs(drawn @ vector / np.linalg.norm(vector) ** 2).max() < 0.2
    assert equals(np.zeros(4, np.float32), 2, 0).tolist() == [[0] * 4] * 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"layers": [9]}, "no layer 9"), ({"scales": []}, "different scales"),
     ({"scales": [1.0, 1.0]}, "different scales"), ({"random": 0}, "random to be 1 or more")],
)  # fmt: skip
def test_what_is_out_of_range_is_refused(tmp_path, wrong, said):
    pair = paired(model(), nudged(model(), seed=1), tmp_path)
    with pytest.raises(wb.WorkbenchError, match=said):
        wb.patching.steer(pair, boxes(6), **wrong)


def test_too_few_prompts_are_refused(tmp_path):
    pair = paired(model(), nudged(model(), seed=1), tmp_path)
    with pytest.raises(wb.WorkbenchError, match="at least 4 prompts"):
        wb.patching.steer(pair, boxes(3))
