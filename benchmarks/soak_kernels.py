"""Every Triton kernel against its reference on many drawn shapes, forward and every gradient, under Triton's interpreter.

    ./launch.sh soak kernels [--shapes 200] [--first-seed 0] [--processes 2] [--log FILE]

On a machine with an accelerator the compiled kernels run instead.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from pathlib import Path

import torch

BAR = 1e-5


def main(argv: list[str]) -> int:
    """Run, print a line a kernel; 1 when one is off."""
    parser = argparse.ArgumentParser(prog="./launch.sh soak kernels", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--shapes", type=int, default=200, help="shapes of each kernel (default: 200)")
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="only these (default: all)")
    parser.add_argument("--first-seed", type=int, default=0, help="seeds count up from here (default: 0)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="side by side (default: one a core)")
    parser.add_argument("--log", type=Path, help="write the lines here as well")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # read where a kernel is defined, so before the import
    import triton

    from benchmarks.kernel_cases import CASES

    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    lines = [f"{args.shapes} shapes from seed {args.first_seed}, {versions}, {time.strftime('%Y-%m-%d')}"]
    print(lines[0], flush=True)
    failed = False
    with multiprocessing.get_context("spawn").Pool(1 if torch.cuda.is_available() else args.processes) as pool:
        for name in args.kernels or CASES:
            started = time.monotonic()
            errors = pool.starmap(
                worst_error, [(name, seed) for seed in range(args.first_seed, args.first_seed + args.shapes)], chunksize=1
            )
            worst, where = max(errors)
            failed |= worst > BAR
            verdict = "ABOVE" if worst > BAR else "within"
            lines.append(f"{name:<24} largest error {worst:.1e} ({where}), bar {BAR:.0e}: {verdict}; {time.monotonic() - started:.0f} s")
            print(lines[-1], flush=True)
    if args.log is not None:
        args.log.write_text("\n".join(lines) + "\n")
    return int(failed)


def worst_error(name: str, seed: int) -> tuple[float, str]:
    """Of one kernel on one shape, and of which of its tensors."""
    from benchmarks.kernel_cases import CASES
    from benchmarks.kernel_draw import Draw

    torch.set_num_threads(1)
    return max((pair.error(), f"{pair.name} of seed {seed}") for pair in CASES[name](Draw(seed)))
