"""TOML files of users: sweeps, schedules, recipes, search spaces."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from deeprl.errors import DeeprlError


def read_toml(path: str | os.PathLike[str]) -> tuple[str, dict[str, Any]]:
    """The text of a file and what it says. Raises DeeprlError that begins with the path."""
    named = os.fspath(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # whatever the locale is; some editors put a mark in front
        return text, tomllib.loads(text)
    except OSError as error:
        raise DeeprlError(f"{named}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DeeprlError(f"{named}: not a text file in UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise DeeprlError(f"{named}: {error}") from error
