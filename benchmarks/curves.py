"""Learning curves drawn from benchmark rows, one picture for each environment, with published curves beside them.

    python benchmarks/curves.py benchmarks/results/simba.csv --published benchmarks/reference/simba.csv --png docs/simba

writes docs/simba_walker_run.png and so on: every seed, the mean over seeds and its 95 % band; in grey what others have
published up to the last step of ours. `deeprl report` draws the same from run directories.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from deeprl.reporting.curves import labelled, picture, read_published


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("rows", help="a file of benchmark rows")
    flags.add_argument("--published", help="curves of others, with the same columns")
    flags.add_argument("--png", required=True, help="the pictures' path, without the environment and .png")
    flags.add_argument("--unit", default="simulator steps", help="what their steps are (default: simulator steps)")
    args = flags.parse_args()
    ours = read_published(args.rows)
    others = read_published(args.published) if args.published else {}
    order = sorted({name for curves in ours.values() for name in curves})
    for env, curves in ours.items():
        path = Path(f"{args.png}_{re.sub('[^a-z0-9]+', '_', env.rpartition('/')[2].lower())}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn, left_out = picture(env, curves, order, labelled(others.get(env, {}), "published"), args.unit)
        path.write_bytes(drawn)
        print(path, *left_out, sep="\n")


if __name__ == "__main__":
    main()
