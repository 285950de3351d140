"""Where a result comes from: versions, commit, device, command."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import deeprl

_PACKAGES = ("torch", "numpy", "gymnasium", "mujoco")


def provenance_of(device: str, threads: int) -> dict[str, Any]:
    """The record that goes into `config.json`."""
    return {
        "versions": versions(),
        "commit": commit(),
        "device": device_name(device, threads),
        "host": platform.node(),
        "command": command(),
    }


def versions() -> dict[str, str]:
    """deeprl, Python and the packages that results depend on."""
    found = {"deeprl": deeprl.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Commit of deeprl's source tree, with `+` where files differ from it; empty for an installed package."""
    root = Path(deeprl.__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    head = _git(root, "rev-parse", "--short=10", "HEAD")
    return head + ("+" if head and _git(root, "status", "--porcelain", "--", "deeprl") else "")


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *words],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def device_name(device: str, threads: int) -> str:
    """Such as `cpu (AMD EPYC, 2 threads)` or `cuda (NVIDIA H100)`."""
    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next(
            (
                li.partition(":")[2].strip()
                for li in info.read_text(encoding="utf-8").splitlines()
                if "model name" in li
            ),
            model,
        )
    return f"cpu ({model}, {threads} threads)"


def command() -> str:
    """The command line, quoted for a shell, without the folder of the program."""
    program = Path(sys.argv[0]) if sys.argv and sys.argv[0] else Path("python")
    package = Path(deeprl.__file__).parent
    if program.suffix == ".py" and program.is_relative_to(package):
        module = ".".join(program.relative_to(package.parent).with_suffix("").parts).removesuffix(".__main__")
        return shlex.join(["python", "-m", module, *sys.argv[1:]])
    return shlex.join([program.name, *sys.argv[1:]])
