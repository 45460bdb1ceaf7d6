"""One logger for the whole program: to the screen through tqdm, and to the run's `train.log`."""

import contextlib
import logging
import os
import sys
import warnings
from pathlib import Path

from tqdm import tqdm

from utils.errors import printable

log = logging.getLogger("plainreid")


def escape(record: logging.LogRecord) -> bool:
    """Show control characters as escapes. Line breaks are kept in messages, but not in their arguments, which may be
    names and notes written by other people."""
    if isinstance(record.args, tuple):
        text = (str, os.PathLike, BaseException)
        record.args = tuple(printable(arg) if isinstance(arg, text) else arg for arg in record.args)
    record.msg = "\n".join(map(printable, str(record.msg).split("\n")))
    return True


class _TqdmHandler(logging.Handler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):  # closed terminal or pipe, full disk: train.log continues
            encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
            tqdm.write(self.format(record).encode(encoding, "backslashreplace").decode(encoding))


def setup_logging(file: str | Path | None = None, quiet: bool = False) -> logging.Logger:
    """Log to the screen, and append to `file` if given; if `quiet`, only errors.

    Python's warnings are logged too, without their source line.
    """
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.setLevel(logging.ERROR if quiet else logging.INFO)
    log.propagate = False
    log.filters = [escape]
    logging.raiseExceptions = False  # a full disk is reported once, where the run is saved
    log.addHandler(_TqdmHandler())
    if file:
        to_file = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(to_file)
    warnings.showwarning = lambda message, *_args, **_kwargs: log.warning("warning: %s", message)
    return log
