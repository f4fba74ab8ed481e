"""What is read of each published claim: a file a paper or a field, one function a claim."""

from workbench.findings.readings.reading import Reading

__all__ = ["Reading"]
