"""Errors that a user can act on: one clear line, exit code 2 in the CLI.

Raise `InputError` for what was given from outside (a name, a file, a number); leave `assert` and
other exceptions to mistakes of our own. `unknown` words the most frequent case, a misspelt name:

    raise unknown("dataset", "ETTh3", catalog.names())
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What was given, what is allowed and what to do, on one line."""


class NotApplicable(Exception):
    """A model cannot do what a cell asks; the cell becomes `n/a`, never a substitute's number."""


def nearest(given: str, allowed: Iterable[str]) -> str | None:
    """The allowed name most like `given`, letter case ignored; None where nothing comes close."""
    by_lower = {name.lower(): name for name in allowed}
    close = difflib.get_close_matches(given.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[close[0]] if close else None


def unknown(kind: str, given: str, allowed: Iterable[str]) -> InputError:
    """The error for a name that is not in `allowed`; returned, so that the caller raises it."""
    options = list(allowed)
    hint = nearest(given, options)
    guess = f"; did you mean {hint!r}?" if hint else ""
    return InputError(f"unknown {kind} {given!r}{guess} (allowed: {', '.join(options)})")
