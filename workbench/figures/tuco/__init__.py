"""The figures of the contribution of fine-tuning, a file for each analysis."""
