"""What does a Result look like? A Result in, a matplotlib Figure (or a sentence) out."""

from workbench.figures.catalogue import (
    CATALOGUE,
    Drawing,
    draw,
    drawings,
    everyone,
    metadata,
    png,
    save_all,
    stems,
)
from workbench.figures.delta import delta_spectra, effective_ranks
from workbench.figures.forgetting import forgetting_by_intruders, forgetting_by_rank
from workbench.figures.headlines import findings, headline, interval
from workbench.figures.intruders import NULLS, intruder_counts, intruders_by_eps, intruders_by_place
from workbench.figures.similarity import similarity_matrix
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

__all__ = [
    "CATALOGUE",
    "NULLS",
    "Drawing",
    "delta_spectra",
    "draw",
    "drawings",
    "effective_ranks",
    "everyone",
    "family",
    "findings",
    "forgetting_by_intruders",
    "forgetting_by_rank",
    "headline",
    "interval",
    "intruder_counts",
    "intruders_by_eps",
    "intruders_by_place",
    "metadata",
    "png",
    "save_all",
    "scale_sweep",
    "scaling_curve",
    "similarity_matrix",
    "stems",
    "strongest",
    "training_steps",
    "tuco_against_output",
    "tuco_by_group",
    "tuco_by_layer",
    "tuco_by_token",
]
