"""What does a Result look like? A Result in, a matplotlib Figure (or a sentence) out."""

from workbench.figures.behaviour.advantage import advantage_by_step
from workbench.figures.behaviour.coverage import pass_at_k
from workbench.figures.behaviour.critical import answers_flipped
from workbench.figures.behaviour.emulate import emulation
from workbench.figures.behaviour.faithfulness import answers_by_steps
from workbench.figures.behaviour.gain import gains_of_examples
from workbench.figures.behaviour.generate import new_words, side_by_side
from workbench.figures.behaviour.reliance import attribution_by_premise, reliance_by_arm
from workbench.figures.behaviour.tokens import change_by_prior, coloured_text, token_landscape
from workbench.figures.catalogue import CATALOGUE, draw, drawings, everyone, findings, headline
from workbench.figures.compare.equivalence import cells, members_against_full
from workbench.figures.compare.robustness import line_of_the_family
from workbench.figures.compare.sensitivity import verdicts_by_margin
from workbench.figures.drawing import Drawing
from workbench.figures.edits.siblings import replicated_parts
from workbench.figures.forgetting.along import over_steps
from workbench.figures.forgetting.association import forgetting_by_measure
from workbench.figures.forgetting.conjugate import conjugate_outcomes
from workbench.figures.forgetting.gains import gains_over_chain
from workbench.figures.forgetting.interpolate import path_scores
from workbench.figures.forgetting.kinds import answer_kinds
from workbench.figures.forgetting.knowledge import knowledge_transitions
from workbench.figures.forgetting.probe import probe_layers, probe_vocabulary
from workbench.figures.forgetting.prune import prune_scores
from workbench.figures.forgetting.retention import forgetting_by_rank
from workbench.figures.forgetting.revive import revival_curves
from workbench.figures.forgetting.sequential import chain_matrix
from workbench.figures.forgetting.sharpness import harmful_steps
from workbench.figures.forgetting.transitions import item_transitions, transfer_matrix
from workbench.figures.forgetting.verdict import verdict_grid
from workbench.figures.patching.activation import layer_position
from workbench.figures.patching.attribution import attribution_against_exact, attribution_by_head
from workbench.figures.patching.circuit import faithfulness, overlap, paths
from workbench.figures.patching.cross_model import by_group, by_layer
from workbench.figures.patching.lens import lens_by_layer
from workbench.figures.patching.mask import masks
from workbench.figures.patching.patterns import pattern_differences, pattern_example
from workbench.figures.patching.recovered import layer_head
from workbench.figures.saving import metadata, named, png, save_all
from workbench.figures.skills.blocks import block_changes, block_edits, greedy_blocks
from workbench.figures.skills.calibration import reliability
from workbench.figures.skills.compose import composition
from workbench.figures.skills.compression import bits_score
from workbench.figures.skills.localize import graft_places, graft_scores
from workbench.figures.skills.overlap import overlap_matrix
from workbench.figures.skills.restore import restoration
from workbench.figures.spec import STYLES, Spec
from workbench.figures.spectral.checkpoints import strongest
from workbench.figures.spectral.delta_spectrum import delta_spectra, effective_ranks
from workbench.figures.spectral.intruders import (
    forgetting_by_intruders,
    intruders_by_eps,
    intruders_by_place,
    training_steps,
)
from workbench.figures.spectral.scale import scale_sweep
from workbench.figures.spectral.similarity import similarity_matrix
from workbench.figures.style import family
from workbench.figures.training import training_run
from workbench.figures.tuco.contribution import (
    tuco_against_output,
    tuco_by_group,
    tuco_by_layer,
    tuco_by_token,
)
from workbench.figures.tuco.scaling import scaling_curve
from workbench.figures.wording import interval
from workbench.results.intruder_counts import NULLS, intruder_counts

__all__ = [
    "CATALOGUE",
    "NULLS",
    "STYLES",
    "Drawing",
    "Spec",
    "advantage_by_step",
    "answer_kinds",
    "answers_by_steps",
    "answers_flipped",
    "attribution_against_exact",
    "attribution_by_head",
    "attribution_by_premise",
    "bits_score",
    "block_changes",
    "block_edits",
    "by_group",
    "by_layer",
    "cells",
    "chain_matrix",
    "change_by_prior",
    "coloured_text",
    "composition",
    "conjugate_outcomes",
    "delta_spectra",
    "draw",
    "drawings",
    "effective_ranks",
    "emulation",
    "everyone",
    "faithfulness",
    "family",
    "findings",
    "forgetting_by_intruders",
    "forgetting_by_measure",
    "forgetting_by_rank",
    "gains_of_examples",
    "gains_over_chain",
    "graft_places",
    "graft_scores",
    "greedy_blocks",
    "harmful_steps",
    "headline",
    "interval",
    "intruder_counts",
    "intruders_by_eps",
    "intruders_by_place",
    "item_transitions",
    "knowledge_transitions",
    "layer_head",
    "layer_position",
    "lens_by_layer",
    "line_of_the_family",
    "masks",
    "members_against_full",
    "metadata",
    "named",
    "new_words",
    "over_steps",
    "overlap",
    "overlap_matrix",
    "pass_at_k",
    "path_scores",
    "paths",
    "pattern_differences",
    "pattern_example",
    "png",
    "probe_layers",
    "probe_vocabulary",
    "prune_scores",
    "reliability",
    "reliance_by_arm",
    "replicated_parts",
    "restoration",
    "revival_curves",
    "save_all",
    "scale_sweep",
    "scaling_curve",
    "side_by_side",
    "similarity_matrix",
    "strongest",
    "token_landscape",
    "training_run",
    "training_steps",
    "transfer_matrix",
    "tuco_against_output",
    "tuco_by_group",
    "tuco_by_layer",
    "tuco_by_token",
    "verdict_grid",
    "verdicts_by_margin",
]


def __dir__() -> list[str]:
    """The public names, without the modules they are from."""
    return [*__all__]
