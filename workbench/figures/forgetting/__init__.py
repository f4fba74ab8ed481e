"""The figures of forgetting, a file for each analysis."""
