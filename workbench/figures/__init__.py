"""What does a Result look like? A Result in, a matplotlib Figure (or a sentence) out."""

from workbench.figures.associated import forgetting_by_measure
from workbench.figures.calibration import reliability
from workbench.figures.catalogue import (
    CATALOGUE,
    draw,
    drawings,
    everyone,
    metadata,
    named,
    png,
    save_all,
)
from workbench.figures.delta import delta_spectra, effective_ranks
from workbench.figures.drawing import Drawing
from workbench.figures.equivalence import cells, members_against_full
from workbench.figures.forgetting import forgetting_by_intruders, forgetting_by_rank
from workbench.figures.headlines import findings, headline
from workbench.figures.hidden import probe_layers, prune_scores, revival_curves, verdict_grid
from workbench.figures.intruders import intruders_by_eps, intruders_by_place
from workbench.figures.kept import (
    chain_matrix,
    conjugate_outcomes,
    knowledge_transitions,
    path_scores,
)
from workbench.figures.lenses import (
    attribution_against_exact,
    attribution_by_head,
    lens_by_layer,
    pattern_differences,
    pattern_example,
)
from workbench.figures.patching import (
    by_group,
    by_layer,
    faithfulness,
    layer_head,
    layer_position,
    masks,
    overlap,
    paths,
)
from workbench.figures.said import (
    answers_by_steps,
    coloured_text,
    emulation,
    new_words,
    side_by_side,
    token_landscape,
)
from workbench.figures.similarity import similarity_matrix
from workbench.figures.skills import composition, graft_places, graft_scores, overlap_matrix
from workbench.figures.spec import STYLES, Spec
from workbench.figures.style import family
from workbench.figures.sweep import scale_sweep
from workbench.figures.training import strongest, training_steps
from workbench.figures.tuco import (
    scaling_curve,
    tuco_against_output,
    tuco_by_group,
    tuco_by_layer,
    tuco_by_token,
)
from workbench.figures.updates import bits_score, block_changes, greedy_blocks, restoration
from workbench.figures.wording import interval
from workbench.results.intruder_counts import NULLS, intruder_counts

__all__ = [
    "CATALOGUE",
    "NULLS",
    "STYLES",
    "Drawing",
    "Spec",
    "answers_by_steps",
    "attribution_against_exact",
    "attribution_by_head",
    "bits_score",
    "block_changes",
    "by_group",
    "by_layer",
    "cells",
    "chain_matrix",
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
    "graft_places",
    "graft_scores",
    "greedy_blocks",
    "headline",
    "interval",
    "intruder_counts",
    "intruders_by_eps",
    "intruders_by_place",
    "knowledge_transitions",
    "layer_head",
    "layer_position",
    "lens_by_layer",
    "masks",
    "members_against_full",
    "metadata",
    "named",
    "new_words",
    "overlap",
    "overlap_matrix",
    "path_scores",
    "paths",
    "pattern_differences",
    "pattern_example",
    "png",
    "probe_layers",
    "prune_scores",
    "reliability",
    "restoration",
    "revival_curves",
    "save_all",
    "scale_sweep",
    "scaling_curve",
    "side_by_side",
    "similarity_matrix",
    "strongest",
    "token_landscape",
    "training_steps",
    "tuco_against_output",
    "tuco_by_group",
    "tuco_by_layer",
    "tuco_by_token",
    "verdict_grid",
]


def __dir__() -> list[str]:
    """The public names, without the modules they are from."""
    return [*__all__]
