"""The figures of behaviour, a file for each analysis."""
