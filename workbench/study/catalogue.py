"""All analyses, as their families tell them: what each one asks, what it needs, what answers it."""

from __future__ import annotations

from workbench import behaviour, edits, forgetting, patching, skills, spectral, tuco
from workbench.analysis.record import RECORDS, Analysis

FAMILIES = (spectral, forgetting, behaviour, tuco, patching, skills, edits)
_EVERY = {record.function: record for record in RECORDS.values()}
# Every method there is, and those that a study of a family runs by itself.
METHODS: tuple[Analysis, ...] = tuple(
    _EVERY[function] for family in FAMILIES for function in family.ANALYSES
)
ANALYSES = tuple(one for one in METHODS if one.takes is not None)
