"""What others measured, item by item: the logs of lm-evaluation-harness and of inspect-ai."""

from workbench.forgetting.logs.item import Item, Log, Score, Task
from workbench.forgetting.logs.pairing import Joined, joined
from workbench.forgetting.logs.reading import read_log

__all__ = ["Item", "Joined", "Log", "Score", "Task", "joined", "read_log"]
