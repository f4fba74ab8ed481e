"""The figures of the spectral analyses, a file for each."""
