"""Behaviour: what the tuned model now says, token by token, text by text, step by step."""

from workbench.behaviour.advantage import advantage
from workbench.behaviour.coverage import coverage
from workbench.behaviour.critical import critical
from workbench.behaviour.emulate import emulate
from workbench.behaviour.faithfulness import faithfulness
from workbench.behaviour.gain import gain
from workbench.behaviour.generate import generate
from workbench.behaviour.reliance import reliance
from workbench.behaviour.tokens import tokens

# In the order in which a report tells them.
ANALYSES = (
    tokens, generate, coverage, critical, gain, faithfulness, advantage, reliance, emulate,
)  # fmt: skip

__all__ = [
    "advantage",
    "coverage",
    "critical",
    "emulate",
    "faithfulness",
    "gain",
    "generate",
    "reliance",
    "tokens",
]


def __dir__() -> list[str]:
    """The public names, without the modules they are from."""
    return [*__all__]
