"""Measures all families, or those named, and writes docs/architectures.md."""

import sys

from tests.architectures.table import main

main(sys.argv[1:])
