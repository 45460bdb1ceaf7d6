"""One kind of error for everything that the user can fix, and the wrapper that prints it."""

import contextlib
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable

CONTROL = re.compile("[\ud800-\udfff\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class UserError(Exception):
    """Bad input: the message is one clear sentence that names the file or setting and how to fix it."""


class Stopped(Exception):
    """The work was stopped by a signal after its state was saved; `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    text = (isinstance(error, OSError) and error.strerror) or str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def printable(text: object) -> str:
    """Return the text with line breaks, other control characters and invalid UTF-8 shown as \\n, \\x1b, ...: names
    and notes from other people may contain text that moves a terminal's cursor or looks like another log line."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return a question with the known names that are similar to `name` or begin with it; "" if there are none."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=cutoff)
    near += [other for other in known if other.startswith(name) and other not in near]
    return f"did you mean {' or '.join(near)}?" if near else ""


def run(main: Callable[[], None]) -> None:
    """Call `main`; a `UserError` becomes one line on stderr and exit code 2, `Stopped` ends with its own exit code.

    Output that the screen or a closed pipe (`| head`) does not accept is dropped.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # the terminal may lack characters of file names
    message, code = "", 0
    try:
        main()
    except UserError as error:
        message, code = f"error: {printable(error)}\n", 2
    except BrokenPipeError:
        code = 128 + 13  # SIGPIPE
    except OSError as error:  # disk full, no permission, directory gone
        if error.filename is None and error.strerror is None:
            raise
        message, code = f"error: {printable(f'{error.strerror}: {error.filename}')}\n", 2
    except Stopped as stop:
        message, code = f"{stop}\n", stop.exit_code
    except KeyboardInterrupt:
        message, code = "stopped\n", 130
    except SystemExit as end:  # after --help
        code = end.code
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(message)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # Python would flush again at exit and report an error
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if code:
        sys.exit(code)
