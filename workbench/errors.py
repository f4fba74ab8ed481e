"""The one exception a user should ever meet: bad input, said in one sentence."""


class WorkbenchError(ValueError):
    """Bad input. The message is one sentence: what was expected, what was found, what to do."""
