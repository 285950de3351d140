"""How much of each algorithm's file is its algorithm: lines of code in losses and update, of all lines of code.

    python benchmarks/shares.py [CHECKOUT]

A line of code is one that is not blank, no comment and no part of a docstring. Losses and update are all functions but
those that every algorithm has around them (`AROUND`), which make networks and agents, act, and hold the schedule.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
AROUND = {"make_net", "build_net", "init", "act", "train", "learner", "explorer", "observe", "with_epsilon"}
AROUND |= {"normalized"}  # in the files of earlier versions


def code_lines(file: Path) -> tuple[int, int, int]:
    """All lines, lines of code, and lines of code in losses and update of one file."""
    text = file.read_text(encoding="utf-8")
    lines, tree = text.splitlines(), ast.parse(text)
    docstrings = {
        number
        for node in ast.walk(tree)
        for part in (getattr(node, "body", None) or [] if not isinstance(node, ast.Lambda | ast.IfExp) else [])
        if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str)
        for number in range(part.lineno, (part.end_lineno or part.lineno) + 1)
    }
    code = {
        number
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.strip().startswith("#") and number not in docstrings
    }
    learning: set[int] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name not in AROUND:
            learning |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines), len(code), len(code & learning)


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else HERE) / "deeprl"
    print("| algorithm | lines | lines of code | losses and update | share |\n|---|---|---|---|---|")
    total = 0
    for room in ("online", "offline", "world_models"):
        for file in sorted((root / room).glob("[!_]*.py")):
            lines, code, learning = code_lines(file)
            total += lines
            print(f"| {file.stem} | {lines} | {code} | {learning} | {100 * learning / code:.0f} % |")
    print(f"| together | {total} | | | |")


if __name__ == "__main__":
    main()
