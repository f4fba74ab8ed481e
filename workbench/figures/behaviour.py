"""The figures of behaviour as data, how each is read, and what each result says in a sentence."""

from __future__ import annotations

from collections.abc import Callable

from workbench.figures import said
from workbench.figures.drawing import Drawing, has
from workbench.figures.wording import change
from workbench.results.result import Result

Findings = tuple[str, list[str]]

DRAWINGS = (
    Drawing(
        said.TOKENS,
        "landscape",
        "Where the base was sure of something else",
        said.token_landscape,
        "Every scored token by the probability the base gave it (across) and how undecided the "
        "base was there (up); colour: how much likelier fine-tuning made it. In the box lie "
        "confident conflicts, tokens of low probability where the base was sure: their share, and "
        "the share that the base's own texts would have.",
        "A token of the answer alone says nothing of the rest of the text. Cells of fewer than "
        "three tokens are left out; the box's edges are round numbers.",
    ),
    Drawing(
        said.TOKENS,
        "text",
        "One text, word by word",
        said.coloured_text,
        "The words of one text on the colour of their change of log p: red became likelier, blue "
        "less likely.",
        "One text, not an average; a word that was certain on both sides is white whatever it "
        "means.",
        applies=has("token"),
    ),
    Drawing(
        said.GENERATE,
        "words",
        "Words that are new",
        said.new_words,
        "Words that texts written by the contrast of the two models use beyond what the same "
        "choice draws from the base alone (bars); dots: the same words in plain samples of the "
        "tuned model, beyond the base's samples. Dashed: the largest z "
        "that any word reaches where the texts are dealt to the two sides at random.",
        "The contrast exaggerates. Words that plain samples show as well needed no contrast, and a "
        "new word is not proof that it stood in the data.",
        applies=has("word"),
    ),
    Drawing(
        said.GENERATE,
        "texts",
        "Texts side by side",
        said.side_by_side,
        "The first texts of base, tuned model and their contrast, from the start token or behind "
        "the same prompts.",
        "A few draws of each, and the first ones, not the best.",
    ),
    Drawing(
        said.EMULATE,
        "beta",
        "Emulated fine-tuning",
        said.emulation,
        "Score of the large model when β times what fine-tuning changed in the small one is added "
        "to its log-probabilities; grey lines: the large model, and the small ones, themselves.",
        "Nothing of the large model was trained: where it beats the small tuned model its own "
        "knowledge helps, where it does not the small model's change does all of it.",
    ),
    Drawing(
        said.FAITHFULNESS,
        "steps",
        "Does the answer follow from the steps?",
        said.answers_by_steps,
        "How often the answer stays what it is after all steps, while only the first ones are left "
        "as they were: the rest cut, replaced by filler, said in other words, or made wrong. A "
        "line that is flat at 1 belongs to a model that does not use its steps.",
        "A base that cannot do the task says the same wrong thing whatever the steps: read the "
        "score in the table first. Cutting steps changes the question where it is told in them.",
    ),
)


def _tokens(result: Result) -> Findings:
    parts = []
    for member in result.members:
        own = result.table[result.table["member"] == member].set_index("metric")
        clash = own.loc["conflict_share"]
        parts.append(
            f"{member}: {change(own.loc['delta_log_p'], '+.2f')} nats a token, KL "
            f"{change(own.loc['kl'], '.2f')}; {clash['value']:.1%} confident conflicts (chance "
            f"{clash['baseline']:.1%}; n = {own.loc['delta_log_p', 'n']:.0f} texts)"
        )
    return f"Log p of tokens, tuned - base ({result.table['task'].iloc[0]})", parts


def _generate(result: Result) -> Findings:
    parts = []
    for member in result.members:
        own = result.table[result.table["member"] == member]
        told = own[own["metric"] == "novelty"].set_index("arm")
        arms = [f"{arm} {change(told.loc[arm], '.2f')}" for arm in told.index if arm != "base"]
        words = own[(own["metric"] == "word") & (own["arm"] == "contrast")].sort_values("x")
        words = words[words["value"] > words["baseline"]]
        known = {"base", "contrast"} <= set(own["arm"])
        named = ", ".join(words["word"].head(6)) or ("none beyond chance" if known else "not asked")
        n = told["n"].iloc[0]
        parts.append(f"{member}: novelty {'; '.join(arms)} (n = {n:.0f}); new words: {named}")
    return "What is new in generated texts, nats a token", parts


def _emulate(result: Result) -> Findings:
    parts = []
    for member in result.members:
        own = result.metric("score")
        own = own[own["member"] == member]
        rows = own.set_index("arm")
        at = own[own["arm"] == "emulated"].set_index("x")
        one = (at.loc[[1.0]] if 1.0 in at.index else at.iloc[[-1]]).reset_index().iloc[0]
        parts.append(
            f"{member}: {change(one, '.2f')} emulated at β = {one['x']:g} (n = {one['n']:.0f}), "
            f"large {rows.loc['large', 'value']:.2f}, small tuned {rows.loc['tuned', 'value']:.2f}"
        )
    return "Score of emulated fine-tuning", parts


def _faithfulness(result: Result) -> Findings:
    parts = []
    areas = result.metric("auc")
    areas = areas[areas["stratum"] == "all"].set_index(["member", "side", "arm"]).sort_index()
    for member in result.members:
        own = areas.loc[(member, "tuned")]
        arms = [f"{arm} {change(own.loc[arm], '.2f')}" for arm in own.index]
        base = areas.loc[(member, "base", "truncated"), "value"]
        n = own["n"].iloc[0]
        parts.append(f"{member}: {', '.join(arms)} (base, truncated {base:.2f}; n = {n:.0f})")
    return "Area below the curve of same answers, 1 where steps change nothing", parts


SENTENCES: dict[str, Callable[[Result], Findings]] = {
    said.TOKENS: _tokens,
    said.GENERATE: _generate,
    said.EMULATE: _emulate,
    said.FAITHFULNESS: _faithfulness,
}
