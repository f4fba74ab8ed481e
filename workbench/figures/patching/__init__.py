"""The figures of patching, a file for each analysis."""
