"""What stands in the place of an activation? One vocabulary for every patching method.

    corrupted        what the same model has on the prompt's corrupt partner
    other            what the other model of the pair has on the same prompt
    zero             zero
    mean             the model's own mean over all tokens of all prompts
    mean_position    its mean over prompts, token by token; prompts of one length
    resample         what it has on another prompt, token by token counted from the prompt's end

(zero and mean as in Wang et al. 2022, arXiv 2211.00593; resampling as in Chan et al. 2022, causal
scrubbing.) Zero is far from anything the later layers know and breaks more than the information
that is lost; a mean keeps what all prompts share; resampling on few prompts is noisy; compare two.
Answers' tokens that are fed count like the prompt's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.models import Site
from workbench.models.rerun import Rerun
from workbench.models.sites import pick
from workbench.stats import others
from workbench.tasks.batching import Batch, Row, batch, in_batches

With = Literal["corrupted", "other", "zero", "mean", "mean_position", "resample"]
CORRUPTED, OTHER, ZERO, MEAN, MEAN_POSITION, RESAMPLE = (
    "corrupted", "other", "zero", "mean", "mean_position", "resample",
)  # fmt: skip
ABLATIONS = (ZERO, MEAN, MEAN_POSITION, RESAMPLE)


class Running(NamedTuple):
    """How a model is run. fill: the token that rows are padded with."""

    fill: int
    batch_size: int
    device: str


@dataclass(frozen=True)
class Replacement:
    """What one model's activations are replaced by. giver, given: the model and the prompts whose
    runs give them, each prompt's own under its number in `turn`. means: whole site -> (1, token or
    1, ...)."""

    how: str
    where: Running
    giver: Any = None
    given: Sequence[Row] = ()
    turn: Sequence[int] = ()
    means: Mapping[Site, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        how: str,
        model: Any,
        rows: Sequence[Row],
        sites: Collection[Site],
        where: Running,
        *,
        giver: tuple[Any, Sequence[Row]] | None = None,
        seed: int = 0,
    ) -> Replacement:
        """For these rows of a model. sites: all that are replaced. giver: the other model, or the
        model with the corrupt partners, and its rows. Raises WorkbenchError where it cannot be."""
        patterns = [site for site in sites if site.kind == "pattern"]
        if patterns and how not in (CORRUPTED, OTHER, ZERO):
            raise WorkbenchError(
                f"Attention patterns of different prompts do not fit each other, so {how} has no "
                "meaning for them; give zero, or other sites (z)."
            )
        if how in (CORRUPTED, OTHER):
            if giver is None:
                raise WorkbenchError(f"Expected another run to take activations from, for {how}.")
            return cls(how, where, *giver, range(len(rows)))
        if how == RESAMPLE:
            require_two(rows)
            return cls(how, where, model, rows, others(len(rows), seed))
        if how in (MEAN, MEAN_POSITION):
            return cls(how, where, means=means_of(model, rows, sites, where, how == MEAN_POSITION))
        return cls(how, where)

    def beside(self, own: Rerun, at: Sequence[int]) -> Standing:
        """What stands for a plain run of the rows at these numbers, which has read the sites."""
        run = None
        if self.giver is not None:
            here = [self.turn[i] for i in at]
            inputs = batch(self.given, here, self.where.device, self.where.fill)
            run = Rerun(self.giver, inputs, own.kept)
        return Standing(self, own, run)


class Standing(NamedTuple):
    """As a Rerun to a patch that reads from it. run: the giver's, if one gives."""

    replacement: Replacement
    own: Rerun
    run: Rerun | None

    def read(self, site: Site) -> Tensor:
        """The values at the site, as `Rerun.read` gives them."""
        index = None if site.position is None else self.own.inputs.index(site.position)
        return pick(site, self._whole(site.whole), index)

    def added(self, site: Site, value: Tensor) -> Tensor:
        """As `Rerun.added`, by the projection of the model that gives the values."""
        giver = self.run if self.replacement.how == OTHER and self.run else self.own
        return giver.added(site, value)

    @property
    def forwards(self) -> float:
        """Plain forward passes that the giver has cost."""
        return 0.0 if self.run is None else self.run.forwards

    def _whole(self, site: Site) -> Tensor:
        how, full = self.replacement.how, self.own.kept[site]
        if how == ZERO:
            return torch.zeros_like(full)
        if self.run is None:
            mean = self.replacement.means[site].to(full)
            return mean[:, : full.shape[1]].expand_as(full)
        if how == OTHER:
            return self.run.kept[site].to(full)
        if site.kind == "pattern":
            return self.run.kept[site].to(full)
        tokens = from_the_end(self.own.inputs, self.run.inputs)
        rows = torch.arange(len(tokens), device=tokens.device)[:, None]
        return self.run.kept[site][rows, tokens].to(full)


def means_of(
    model: Any, rows: Sequence[Row], sites: Collection[Site], where: Running, each_token: bool
) -> dict[Site, Tensor]:
    """Whole site -> its mean (1, 1, ...) over all tokens of all prompts, or (1, token, ...) over
    prompts alone. Raises WorkbenchError for that where prompts are of several lengths."""
    lengths = [len(row.fed) for row in rows]
    if each_token and len(set(lengths)) > 1:
        raise WorkbenchError(
            f"The mean at each token needs prompts of one length, found {min(lengths)} to "
            f"{max(lengths)} tokens with their answers; give mean, or prompts of equal length."
        )
    whole = list(dict.fromkeys(site.whole for site in sites))
    axes = (0,) if each_token else (0, 1)
    sums: dict[Site, Any] = dict.fromkeys(whole, 0)

    def run(at: list[int]) -> dict[Site, Tensor]:
        own = Rerun(model, batch(rows, at, where.device, where.fill), whole)
        found = {}
        for site in whole:
            full = own.kept[site]
            real = own.inputs.mask.view(*own.inputs.mask.shape, *[1] * (full.ndim - 2)).bool()
            found[site] = torch.where(real, full, 0).cpu().double().sum(axes, keepdim=True)
        return found

    for _, found in in_batches(lengths, where.batch_size, run):
        sums = {site: sums[site] + found[site] for site in whole}
    count = len(rows) if each_token else sum(lengths)
    return {site: (total / count).float() for site, total in sums.items()}


def require_with(how: str, known: Sequence[str], name: str = "with_") -> None:
    """Raises for a replacement that a method does not have."""
    if how not in known:
        raise WorkbenchError(f"Expected {name} of {', '.join(known)}, found {how!r}.")


def require_two(rows: Sequence[Row]) -> None:
    """Raises for one prompt alone, for which no other stands in."""
    if len(rows) < 2:
        raise WorkbenchError(
            "Expected two or more prompts, of which one stands in for another, found one; give "
            "more, or another replacement than resample."
        )


def from_the_end(own: Batch, other: Batch) -> Tensor:
    """(batch, token) the other rows' tokens as far from their prompts' ends as own ones are from
    theirs, within the other row."""
    steps = torch.arange(own.ids.shape[1], device=own.ids.device)[None]
    found = other.lengths[:, None] - own.lengths[:, None] + steps
    last = other.mask.sum(-1)[:, None] - 1
    return torch.minimum(found.clamp(min=0), last)
