"""Which release is this? Its one place; the distribution reads it here, too."""

__version__ = "0.1.0"
