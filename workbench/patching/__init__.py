"""Where does the fine-tuned behaviour live? Activations and parameters of one run put into another,
within one model (clean and corrupt prompts) and across a pair (the same prompt)."""

from workbench.patching.activation import activation
from workbench.patching.cross_model import cross_model
from workbench.patching.restore import restore

__all__ = ["activation", "cross_model", "restore"]
