"""What a file that was passed on would have us run: in a process of its own, within bounds."""
