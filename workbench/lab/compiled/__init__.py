"""Pairs whose every weight is written by construction: programs, their compiler, what differs."""

from workbench.lab.compiled.compiler import Room, rotated, save, weights
from workbench.lab.compiled.pairs import pairs
from workbench.lab.compiled.program import Head, Neuron, Program, rule

__all__ = ["Head", "Neuron", "Program", "Room", "pairs", "rotated", "rule", "save", "weights"]
