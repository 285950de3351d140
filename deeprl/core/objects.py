"""What users name as `module:name`: own networks, wrappers, environments in modules of their own."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import Any

from deeprl.errors import DeeprlError, one_line


def load_object(path: str, what: str) -> Any:
    """The object that `module:name` names. Raises DeeprlError that says what is wrong with it."""
    see_working_directory()
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise DeeprlError(f"{what} {path!r}: expected module:name; {one_line(error)}") from error


def imported(env: str) -> str:
    """The id of `module:Id-v0`, whose module has been imported if it can be, and may have registered it."""
    module, _, name = env.rpartition(":")
    if module:
        see_working_directory()
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    return name


def see_working_directory() -> None:
    """Let `module:name` find a module next to where the user stands, without hiding any that is installed."""
    with contextlib.suppress(FileNotFoundError):  # it has been deleted
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
