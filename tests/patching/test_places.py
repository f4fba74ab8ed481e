"""Places by what stands there: against plain runs at the tokens that are meant."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import workbench as wb
from tests.conftest import nudged
from tests.patching.conftest import boxes, model, paired, value
from workbench.errors import WorkbenchError
from workbench.lab import shipped
from workbench.models import Site
from workbench.patching import sweep as shared
from workbench.patching.patches import Patch
from workbench.patching.places import asked, placed
from workbench.patching.sweep import Side
from workbench.tasks import PromptSet
from workbench.tasks.batching import Row, rows

WORDS = shipped.tokenizer()
SHORT = Row("short", [1] * 6, {"name": (1, 3), "verb": (3, 4)})
LONG = Row("long", [1] * 9, {"name": (2, 6), "verb": (6, 7)})


def test_rules_give_tokens():
    names = ["name:last", "name:first", "2..3", "name<-verb", "verb<-name:last", "verb<- name"]
    ours, theirs = placed(names[:5], [SHORT, LONG], [LONG, SHORT])
    assert [row.spans["name:last"] for row in ours] == [(2, 3), (5, 6)]
    assert [row.spans["name:first"] for row in theirs] == [(2, 3), (1, 2)]
    assert {row.spans["2..3"] for row in (*ours, *theirs)} == {(2, 4)}
    assert [row.spans["name<-verb"] for row in ours] == [(1, 3), (2, 6)]
    assert [row.spans["name<-verb"] for row in theirs] == [(6, 7), (3, 4)]
    assert [row.spans["verb<-name:last"] for row in theirs] == [(5, 6), (2, 3)]
    with pytest.raises(WorkbenchError, match="'short' has no span 'noun'; known"):
        placed(["noun:last"], [SHORT], [LONG])
    with pytest.raises(WorkbenchError, match=r"Tokens 4..7 lie outside prompt 'short'"):
        placed(["4..7"], [SHORT], [LONG])
    # A name that a task has already given is that place.
    own = replace(SHORT, spans={"2..3": (0, 1)})
    assert placed(["2..3"], [own], [own])[0][0].spans["2..3"] == (0, 1)


def test_what_is_composed_is_found_among_positions_sites_and_groups():
    sites = ["resid_pre", "4.z.h3@name:last", Site("z", 0, position="2..5"), "1.z@verb"]
    found = asked(["each", -1, None, "name", "a<-b:mean"], sites, {"g": ["0.z.h1@b:first"]})
    assert found == ["a<-b:mean", "name:last", "2..5", "b:first"]
    assert asked(-1) == asked("all") == []


PAIRS = [
    "query box<-correct label", "1..3<-correct label:mean", "query box<-1..3:mean",
    "query box:last<-1..3:last",
]  # fmt: skip


@pytest.mark.parametrize("place", PAIRS)
def test_a_pair_of_places_by_plain_runs(place):
    """What the other run has at the one place is written at the other."""
    made, prompts = model(), boxes(2, order="object first")
    dirty = wb.tasks.corrupt(prompts, 0, tokenizer=WORDS)
    clean, corrupt = (rows(WORDS, one, answers=True) for one in (prompts, dirty))
    ours, theirs = placed([place], clean, corrupt)
    patch = Patch((Site("resid_post", 0, position=place),), {"component": "resid_post"})
    found = shared.sweep(Side(made, ours), Side(made, theirs), [patch], WORDS, large=None)
    site = Site("resid_post", 0)
    for i, (row, other) in enumerate(zip(clean, corrupt, strict=True)):
        here, _, there = place.removesuffix(":mean").partition("<-")
        (a, b), (c, d) = (
            (1, 4) if name.startswith("1..3") else own.spans[name.removesuffix(":last")]
            for name, own in ((here, row), (there, other))
        )
        a, c = (b - 1, d - 1) if place.endswith(":last") else (a, c)
        full = wb.models.run(made, {"input_ids": torch.tensor([other.fed])}, read=[site])
        given = full.captured[site][:, c:d]
        given = given.mean(1, keepdim=True) if place.endswith(":mean") else given

        def write(own: torch.Tensor, given: torch.Tensor = given, at=(a, b)) -> torch.Tensor:
            new = own.clone()
            new[:, at[0] : at[1]] = given
            return new

        ran = wb.models.run(made, {"input_ids": torch.tensor([row.fed])}, write={site: write})
        wanted = ran.logits[0, len(row.ids) - 1].log_softmax(-1)[row.answer[0]]
        assert found.patched["log_probability"][0, i] == pytest.approx(float(wanted), abs=1e-5)


def test_other_widths_are_refused_unless_a_rule_is_given():
    made, own = model(), [replace(SHORT, spans={"a": (0, 2), "b": (2, 3)})] * 2
    ends = (Side(made, rows_of) for rows_of in placed(["a<-b"], own, own))
    patch = Patch((Site("z", 0, position="a<-b"),))
    with pytest.raises(WorkbenchError, match=r"a rule \(a<-b:last, a<-b:first\)"):
        shared.sweep(*ends, [patch], WORDS)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with torch.no_grad():
        return paired(model(), nudged(model(), seed=1), tmp_path_factory.mktemp("pair"))


def test_marked_prompts_are_scored_without_the_marks(pair):
    """Every number is that of the same prompts with a span, and so is what is run; a note says
    it. The place can be asked for by its last token, in activation as in cross-model patching."""
    plain = boxes(4, order="object first")
    spans = [prompt.spans["query box"] for prompt in plain]
    texts = [f"{p.prompt[:a]}[[box|{p.prompt[a:b]}]]{p.prompt[b:]}"
             for p, (a, b) in zip(plain, spans, strict=True)]  # fmt: skip
    marks = (replace(p, prompt=t, spans={}) for p, t in zip(plain, texts, strict=True))
    named = (replace(p, spans={"box": own}) for p, own in zip(plain, spans, strict=True))
    with_marks, with_spans = PromptSet("one", tuple(marks)), PromptSet("one", tuple(named))
    options = {"sites": ["resid_post"], "positions": ["box", "box:last"], "controls": 0}
    one, other = (
        wb.patching.cross_model(pair, given, **options) for given in (with_marks, with_spans)
    )
    assert one.table.equals(other.table)
    assert any("marks is a place" in note for note in one.provenance.notes)
    # The box is one token, so its last one is it.
    assert torch.equal(value(one, "krs", position="box"), value(one, "krs", position="box:last"))
    dirty = wb.tasks.corrupt(plain, 0, tokenizer=WORDS)
    found = wb.patching.activation(
        pair, plain, corrupted=dirty, sites=["1.resid_post@query box:last"], sides=("base",),
        positions=["query box"], controls=0,
    )  # fmt: skip
    assert set(found.metric("score")["position"].dropna()) == {"query box:last"}


def test_a_place_taken_from_another_needs_a_run_to_take_it_from(pair):
    for method in ("activation", "path"):
        how = {"positions": ["correct object<-query box"]} if method == "activation" else {
            "position": "correct object<-query box", "senders": [(0, 0)]}  # fmt: skip
        with pytest.raises(WorkbenchError, match="which zero does not read"):
            getattr(wb.patching, method)(pair, boxes(4), with_="zero", **how)
