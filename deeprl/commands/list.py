"""`deeprl list`: the algorithms, with their papers and what they need. Imports nothing heavy."""

from __future__ import annotations

import argparse
import textwrap

import deeprl
from deeprl.recipes import RECIPES


def run(options: argparse.Namespace) -> int:
    for name, algorithm in deeprl.ALGORITHMS.items():
        print(f"{name:10} {algorithm.title}\n{'':10} {algorithm.paper}; needs {algorithm.needs}")
        if recipes := ", ".join(RECIPES.get(name, {})):
            wrapped = textwrap.wrap(recipes, 97, break_on_hyphens=False)
            print(f"{'':10} recipes: " + f"\n{'':13}".join(wrapped))
    return 0
