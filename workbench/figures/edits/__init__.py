"""The figures of edits, a file for each analysis."""
