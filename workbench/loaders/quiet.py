"""What libraries say of a loading, which is read here, stays unsaid."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from logging import CRITICAL, DEBUG

from workbench.log import log


@contextlib.contextmanager
def unsaid() -> Iterator[None]:
    """transformers' report of a loading, which is read here, and its bar in a file stay unsaid."""
    from transformers.utils import logging

    if log.isEnabledFor(DEBUG):
        yield
        return
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(max(level, CRITICAL))
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # peft asks transformers by a name that transformers gives up.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            # What peft advises of training and merging is not for who looks at what was trained.
            warnings.filterwarnings("ignore", module=r"peft\.")
            yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
