"""The prompts people already have: what a file holds, by its ending, and what its rows mean, by
their keys."""

from workbench.tasks.formats.reading import read

__all__ = ["read"]
