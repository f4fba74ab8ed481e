"""Knockouts: exact nulls, a hand-built circuit, a planted head, and numbers by plain torch."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch

import workbench as wb
from tests.conftest import nudged
from tests.models import zoo
from tests.patching.conftest import MOVER, READER, WORDS, boxes, copier, model, paired, said
from workbench.models import Site
from workbench.models.rerun import Rerun
from workbench.patching import sweep, sweep_plan
from workbench.patching.knockout import CHANGE, METRICS, Part, _table, parts
from workbench.progress import progress
from workbench.results.result import Result
from workbench.stats import others
from workbench.tasks.batching import encode

# The package names the function as the module that holds it.
of_knockout = import_module("workbench.patching.knockout")


def of(result: Result, metric: str, **where: object) -> np.ndarray:
    rows = result.metric(metric)
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    return rows["value"].to_numpy(float)


def test_only_the_heads_of_a_hand_built_circuit_are_missed(tmp_path):
    """Without READER or MOVER the copier cannot say the object; nothing else does anything, so
    taking it out changes nothing, whatever stands in its place."""
    made = copier()
    pair = paired(made, made, tmp_path)
    found = wb.patching.knockout(pair, said(), components=("head", "mlp"))
    for arm in ("zero", "mean", "resample"):
        rows = found.metric("score")
        rows = rows[(rows["arm"] == arm) & (rows["side"] == "base")]
        heads = rows[rows["component"] == "head"].set_index(["layer", "head"])["value"]
        for place in (READER, MOVER):
            assert heads[place] < -0.5, (arm, place)
        rest = heads.drop([READER, MOVER])
        assert rest.eq(0).all(), arm
        assert rows.loc[rows["component"] == "mlp", "value"].eq(0).all()
    for metric in ("score", "log_probability", "logit_difference", "picked"):
        assert (of(found, metric, side=CHANGE) == 0).all()


def test_a_head_that_the_tuned_model_learned_is_picked(tmp_path):
    """The base is the copier without MOVER's output: only the tuned model has anything to lose."""
    base, tuned = copier(), copier()
    layer, head = MOVER
    with torch.no_grad():
        base.model.layers[layer].self_attn.o_proj.weight[:, 8 * head : 8 * head + 8] = 0
    found = wb.patching.knockout(
        paired(base, tuned, tmp_path), said(16), arms=("mean",), components=("head",)
    )
    picked = found.metric("picked").iloc[0]
    assert (picked["layer"], picked["head"]) in (MOVER, READER)
    assert picked["high"] < 0
    assert (of(found, "log_probability", side="base", component="head") == 0).all()


def test_every_number_by_plain_torch(tmp_path):
    base, tuned = model(), nudged(model(), seed=1)
    pair, prompts = paired(base, tuned, tmp_path), boxes(5, count=None)
    found = wb.patching.knockout(pair, prompts, batch_size=2)
    words, layer, head, width = pair.base.tokenizer(), 1, 2, 8
    coded = [encode(words, prompt) for prompt in prompts]
    turn = others(len(prompts), 0)

    def run(made, i: int, change=None, keep=None) -> torch.Tensor:
        """Logits that predict the answer. change, keep: of (token, width) at o_proj's input."""

        def hook(_module, args):
            if keep is not None:
                keep.append(args[0][0].clone())
            return None if change is None else (change(args[0].clone()),)

        handle = made.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(hook)
        with torch.no_grad():
            out = made(torch.tensor([coded[i].ids[:-1]])).logits[0, coded[i].start - 1 :]
        handle.remove()
        return out

    def told(logits: torch.Tensor, i: int) -> dict[str, float]:
        answer = torch.tensor(coded[i].ids[coded[i].start :])
        foils = [encode(words, wb.tasks.Prompt("", prompts[i].prompt, f)) for f in prompts[i].foils]
        wrong = max(float(logits[0, f.ids[f.start]]) for f in foils)
        return {
            "score": float((logits.argmax(-1) == answer).all()),
            "log_probability": float(logits.log_softmax(-1).gather(1, answer[:, None]).sum()),
            "logit_difference": float(logits[0, answer[0]]) - wrong,
        }

    part = slice(width * head, width * (head + 1))
    changes: dict[tuple[str, str, str], list[float]] = {}
    for side, made in (("base", base), ("tuned", tuned)):
        z: list[torch.Tensor] = []
        for i in range(len(prompts)):
            run(made, i, keep=z)
        mean = torch.cat(z).mean(0)
        for i in range(len(prompts)):
            there, shift = z[turn[i]], coded[turn[i]].start - coded[i].start

            def resampled(x, there=there, shift=shift):
                at = (torch.arange(x.shape[1]) + shift).clamp(0, len(there) - 1)
                x[0, :, part] = there[at][:, part]
                return x

            def averaged(x, mean=mean):
                x[0, :, part] = mean[part]
                return x

            def zeroed(x):
                x[0, :, part] = 0
                return x

            plain = told(run(made, i), i)
            for arm, change in (("zero", zeroed), ("mean", averaged), ("resample", resampled)):
                for metric, value in told(run(made, i, change), i).items():
                    changes.setdefault((side, arm, metric), []).append(value - plain[metric])
    where = {"component": "head", "layer": layer, "head": head}
    for (side, arm, metric), values in changes.items():
        (own,) = of(found, metric, side=side, arm=arm, **where)
        assert own == pytest.approx(np.mean(values), abs=2e-4), (side, arm, metric)
    for arm in ("zero", "mean", "resample"):
        both = [changes[side, arm, "log_probability"] for side in ("base", "tuned")]
        (own,) = of(found, "log_probability", side=CHANGE, arm=arm, **where)
        assert own == pytest.approx(np.mean(np.subtract(both[1], both[0])), abs=2e-4)


def test_a_layer_is_all_that_it_adds(tmp_path):
    """Zero ablation of a layer is the model without that block."""
    base = model()
    pair, prompts = paired(base, nudged(model(), seed=1), tmp_path), boxes(4)
    found = wb.patching.knockout(pair, prompts, arms=("zero",), components=("layer",))
    words, changes = pair.base.tokenizer(), []
    for prompt in prompts:
        own = encode(words, prompt)
        ids, answer = torch.tensor([own.ids[: own.start]]), own.ids[own.start]
        with torch.no_grad():
            plain = base(ids).logits[0, -1].log_softmax(-1)[answer]
            handle = base.model.layers[1].register_forward_hook(lambda m, a, out: a[0])
            without = base(ids).logits[0, -1].log_softmax(-1)[answer]
            handle.remove()
        changes.append(float(without - plain))
    (value,) = of(found, "log_probability", side="base", layer=1)
    assert value == pytest.approx(np.mean(changes), abs=1e-4)


def test_what_is_taken_out_in_a_parallel_model():
    layout = wb.models.Layout(model("gpt_neox"))
    made = parts(layout, ("layer", "head", "mlp"))
    assert [part.component for part in made[: layout.layers]] == ["layer"] * layout.layers
    assert len(made) == layout.layers * (2 + layout.heads)
    assert {site.kind for site in made[0].sites} == {"attn_out", "mlp_out"}


def test_unknown_words_and_a_prompt_alone_are_refused(tmp_path):
    pair = paired(model(), nudged(model(), seed=1), tmp_path)
    with pytest.raises(wb.WorkbenchError, match="Expected arms of zero, mean, mean_position"):
        wb.patching.knockout(pair, boxes(4), arms=("none",))
    with pytest.raises(wb.WorkbenchError, match="Expected components of head, mlp, layer"):
        wb.patching.knockout(pair, boxes(4), components=())
    with pytest.raises(wb.WorkbenchError, match="two or more prompts"):
        wb.patching.knockout(pair, boxes(1))


def test_a_picked_loss_by_hand():
    """Two heads, four prompts, the first two pick: head 1 loses more there, 3 on the others; the
    mean of both heads on those is 2."""
    places = [Part("head", 0, head, (Site("z", 0, head=head),)) for head in (0, 1)]
    change = {metric: [np.array([[0.0, -1, -1, -1], [-5, -5, -2, -4]])] for metric in METRICS}
    table = _table({CHANGE: change}, places, ["mean"], ([0, 1], [2, 3]), 0)
    picked = table[table["metric"] == "picked"].squeeze()
    assert (picked["head"], picked["value"], picked["baseline"], picked["n"]) == (1, -3, -2, 2)


def test_a_neuron_is_what_the_down_projection_reads(tmp_path):
    """Every neuron of a layer by plain torch; of these the one that the tuned model alone reads is
    where the sides differ most, and all of that is the tuned model's change."""
    base, tuned = model(), model()
    with torch.no_grad():
        down = base.model.layers[1].mlp.down_proj
        down.weight[:, 5] = 0
        tuned.model.layers[1].mlp.down_proj.weight[:, 5] *= 5
    pair, prompts = paired(base, tuned, tmp_path), boxes(4)
    found = wb.patching.knockout(pair, prompts, arms=("zero",), components=("neuron", "mlp"))
    words, neurons = pair.base.tokenizer(), down.in_features
    expected = np.zeros((len(prompts), neurons))
    for i, prompt in enumerate(prompts):
        own = encode(words, prompt)
        ids, answer = torch.tensor([own.ids[: own.start]]), own.ids[own.start]

        def said(change=None, ids=ids, answer=answer) -> float:
            hook = down.register_forward_pre_hook(lambda m, args: change and (change(args[0]),))
            with torch.no_grad():
                logits = base(ids).logits[0, -1]
            hook.remove()
            return float(logits.log_softmax(-1)[answer])

        plain = said()
        for n in range(neurons):
            without = torch.ones(neurons)
            without[n] = 0
            expected[i, n] = said(lambda x, without=without: x * without) - plain
    own = of(found, "log_probability", side="base", component="neuron", layer=1)
    assert own == pytest.approx(expected.mean(0), abs=2e-5)
    assert own[5] == pytest.approx(0, abs=1e-6)
    table = found.table[found.table["component"] == "neuron"]
    each = 2 + 1  # score, log-probability and logit difference
    assert len(table) == 3 * each * 3 * neurons + 1
    assert set(table[table["metric"] == "picked"]["side"]) == {CHANGE}
    known = table[(table["metric"] == "log_probability") & (table["side"] == CHANGE)]
    known = known[known["layer"] == 1]
    most = known.loc[known["value"].abs().idxmax()]
    assert most["neuron"] == 5
    (theirs,) = of(found, "log_probability", side="tuned", component="neuron", layer=1, neuron=5)
    assert most["value"] == pytest.approx(theirs, abs=1e-6)
    kept = wb.patching.per_prompt(found, "log_probability", side="base", arm="zero")
    assert kept.values[
        kept.places["neuron"].notna() & (kept.places["layer"] == 1)
    ] == pytest.approx(expected.T, abs=1e-4)


def test_what_a_model_does_not_have_is_said_or_refused(tmp_path):
    """Neurons of a mixture of experts, heads of a state-space model; and a table that could not be
    read again, before anything is run."""
    for family, asked, kind in (
        ("mixtral", ["neuron"], "mlp_hidden"), ("mamba", ["head"], "z"), ("mamba", ["mlp"], "mlp"),
    ):  # fmt: skip
        pair = paired(*(zoo.small(family, vocab_size=WORDS) for _ in range(2)), tmp_path / kind)
        with pytest.raises(wb.WorkbenchError, match=kind):
            wb.patching.knockout(pair, boxes(4), components=asked)
        found = wb.patching.knockout(pair, boxes(4), components=[*asked, "layer"], arms=("zero",))
        notes = " ".join(found.provenance.notes)
        assert f"no {asked[0]} is known in any layer, so none was taken out there" in notes


def test_a_table_that_could_not_be_read_again_is_refused_first(tmp_path, monkeypatch):
    pair = paired(model(), nudged(model(), seed=1), tmp_path)
    monkeypatch.setattr(of_knockout, "MOST_CELLS", 1000)
    with pytest.raises(wb.WorkbenchError, match="at most 76 rows, found 180 for 15 components"):
        wb.patching.knockout(pair, boxes(4), arms=("zero",), components=("head", "layer"))


@pytest.mark.parametrize("knock", [True, False])
def test_progress_goes_back_where_a_batch_did_not_fit(tmp_path, monkeypatch, knock):
    """What was counted of it is counted again by its halves: the bar ends at its whole."""
    pair = paired(model(), nudged(model(), seed=1), tmp_path)
    real, bars = Rerun.again, []

    def tight(self, patches, **more):
        if len(self.inputs.ids) > 2 and len(bars) and bars[-1].n:
            raise torch.OutOfMemoryError("out of memory")
        return real(self, patches, **more)

    def kept(**given):
        bars.append(progress(**given))
        return bars[-1]

    monkeypatch.setattr(Rerun, "again", tight)
    monkeypatch.setattr(of_knockout if knock else sweep, "progress", kept)
    if knock:
        wb.patching.knockout(pair, boxes(4), arms=("zero",), batch_size=4)
    else:
        wb.patching.activation(pair, boxes(4), sites=["z"], batch_size=4)
    assert [bar.n for bar in bars] == [bar.total for bar in bars]
    assert len(bars) >= 2


def test_what_is_long_is_told_and_asked_for(tmp_path, monkeypatch):
    pair = paired(model(), nudged(model(), seed=1), tmp_path)
    monkeypatch.setattr(sweep_plan, "LONG", 0.0)
    with pytest.raises(wb.WorkbenchError, match="knockout, of each side: 15 patches of 4 prompts"):
        wb.patching.knockout(pair, boxes(4), arms=("zero",), components=("head", "layer"))
    wb.patching.knockout(pair, boxes(4), arms=("zero",), components=("layer",), large=True)
