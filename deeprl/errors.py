"""Errors that a user can mend: the command line prints them as one line and exits with status 2."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterable
from pathlib import Path


class DeeprlError(Exception):
    """Bad input (a name, a setting, a file). The message is one line: what is wrong, what would be right."""


class InUseError(DeeprlError):
    """Another process works in a run directory."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean A, B?"` with up to three of `known` that resemble `name`, or an empty string."""
    lowered = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.6)
    return f"; did you mean {', '.join(lowered[c] for c in close)}?" if close else ""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; the name of its type if it says nothing."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def one_line(error: BaseException) -> str:
    """All that an error says, in one line, without backticks."""
    return str(error).replace("\n", " ").replace("`", "").strip()


def shown(path: str | os.PathLike[str]) -> Path:
    """A path as seen from the working directory, if it lies below it."""
    with contextlib.suppress(ValueError, OSError):
        return Path(path).relative_to(Path.cwd())
    return Path(path)
