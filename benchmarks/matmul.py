"""The rate at which this machine multiplies matrices, by the same stopwatch: the ceiling of roofline.py.

    python benchmarks/matmul.py --precision fast --seconds 5 --threads 2

A turn is one batched product [8, 256, 256] x [8, 256, 256] into the same memory: the shape of a layer of 256 units in
eight agents with batches of 256. bf16 multiplies bf16 matrices; deeprl's own bf16 products also convert f32 weights.
"""

from __future__ import annotations

from stopwatch import Stopwatch, parse, say, versions  # first: it reads the clock

import argparse  # isort: skip
import json

BATCH, SIZE = 8, 256
FLOPS = 2 * BATCH * SIZE**3  # of a turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="fast", choices=("fast", "strict", "bf16"))
    args = parse(parser)
    import torch  # the threads must be limited before

    torch.set_num_threads(args.threads)
    torch.set_float32_matmul_precision("highest" if args.precision == "strict" else "medium")
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    torch.manual_seed(args.seed)
    left, right, out = (torch.randn(BATCH, SIZE, SIZE, device=args.device).to(dtype) for _ in range(3))
    sync = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    watch, done = Stopwatch(args.warmup_steps, args.seconds, args.wait, sync), 0
    with torch.no_grad():
        while not watch.tick(done, done):
            torch.bmm(left, right, out=out)
            done += 1
    found = watch.result()
    about = {
        "peer": "matmul",
        "agents": 1,
        "threads": args.threads,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "precision": args.precision,
        "versions": versions(("torch",)),
        "includes": f"products [{BATCH}, {SIZE}, {SIZE}] x [{BATCH}, {SIZE}, {SIZE}]",
        "flops_per_s": found["steps_per_s"] * FLOPS,
    }
    say(json.dumps(about | found))


if __name__ == "__main__":
    main()
