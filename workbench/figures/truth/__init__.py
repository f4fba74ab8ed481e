"""Figures of the scoreboard."""
