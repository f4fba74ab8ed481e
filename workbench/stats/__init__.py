"""Pure maths that analyses share: intervals of means, shares, ranks and calibration errors."""

from workbench.stats.calibration import bin_of, calibration, calibration_error
from workbench.stats.groups import LEAST, gaps, spread
from workbench.stats.intervals import (
    Interval,
    Intervals,
    bootstrap,
    difference,
    edges,
    halves,
    others,
    predicted,
    ratios,
    share_of,
)
from workbench.stats.proportions import (
    change,
    combined,
    paired_shares,
    proportion,
    share,
    shares,
    wilson,
)
from workbench.stats.ranks import auc, auc_difference, nearest_pairs, spearman, spearman_p
from workbench.stats.runs import between_runs, over_runs
from workbench.stats.tables import Homogeneity, homogeneity, paired_counts

__all__ = [
    "LEAST",
    "Homogeneity",
    "Interval",
    "Intervals",
    "auc",
    "auc_difference",
    "between_runs",
    "bin_of",
    "bootstrap",
    "calibration",
    "calibration_error",
    "change",
    "combined",
    "difference",
    "edges",
    "gaps",
    "halves",
    "homogeneity",
    "nearest_pairs",
    "others",
    "over_runs",
    "paired_counts",
    "paired_shares",
    "predicted",
    "proportion",
    "ratios",
    "share",
    "share_of",
    "shares",
    "spearman",
    "spearman_p",
    "spread",
    "wilson",
]
