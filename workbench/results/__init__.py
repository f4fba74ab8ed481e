"""What an analysis returns, how it is kept, and which of its numbers say nothing."""

from workbench.results.result import Provenance, Result, concatenate

__all__ = ["Provenance", "Result", "concatenate"]
