"""The figures of what several results say together."""
