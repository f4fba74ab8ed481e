"""The figures of skills, a file for each analysis."""
