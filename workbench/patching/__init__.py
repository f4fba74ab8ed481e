"""Where does the fine-tuned behaviour live? Activations and parameters of one run put into another,
within one model (clean and corrupt prompts) and across a pair (the same prompt)."""

from workbench.patching.activation import activation
from workbench.patching.attribution import attribution
from workbench.patching.circuit import circuit, circuits_of
from workbench.patching.circuit_files import load_circuits, save_circuits
from workbench.patching.contributions import contributions
from workbench.patching.cross_model import cross_model
from workbench.patching.das import das
from workbench.patching.dictionary import dictionary
from workbench.patching.difference import difference
from workbench.patching.direction import Direction
from workbench.patching.drift import drift
from workbench.patching.edge_circuits import edge_circuits
from workbench.patching.groups import groups
from workbench.patching.knockout import knockout
from workbench.patching.lens import lens
from workbench.patching.mask import mask
from workbench.patching.metrics import Metric
from workbench.patching.path import path
from workbench.patching.patterns import patterns
from workbench.patching.per_prompt import PerPrompt, per_prompt
from workbench.patching.prefix import prefix
from workbench.patching.restore import restore
from workbench.patching.sae import SAE
from workbench.patching.steer import steer

# In the order in which a report tells them.
ANALYSES = (
    cross_model,
    restore,
    lens,
    difference,
    contributions,
    drift,
    dictionary,
    steer,
    knockout,
    patterns,
    prefix,
    activation,
    attribution,
    circuit,
    edge_circuits,
    groups,
    mask,
    das,
    path,
)

__all__ = [
    "SAE",
    "Direction",
    "Metric",
    "PerPrompt",
    "activation",
    "attribution",
    "circuit",
    "circuits_of",
    "contributions",
    "cross_model",
    "das",
    "dictionary",
    "difference",
    "drift",
    "edge_circuits",
    "groups",
    "knockout",
    "lens",
    "load_circuits",
    "mask",
    "path",
    "patterns",
    "per_prompt",
    "prefix",
    "restore",
    "save_circuits",
    "steer",
]


def __dir__() -> list[str]:
    """The public names, without the modules they are from."""
    return [*__all__]
