"""Continue a text with a run's model."""

from __future__ import annotations

import argparse
import math


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("name", metavar="RUN")
    parser.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    parser.add_argument("--prompt", default="def ", help="text to continue (default: 'def ')")
    parser.add_argument("--max-new", type=int, default=128, help="tokens to add (default: 128)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default: 0.8)")
    parser.add_argument("--top-k", type=int, default=50, help="draw among so many likeliest tokens; 0: all (default: 50)")
    parser.add_argument("--repeats", type=int, metavar="N", help="go N times through the repeated layers (default: as trained)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Generate and print prompt and continuation."""
    from cluster.errors import ClusterError
    from distributed.run_folder import RunFolder

    for option, value, least in (
        ("--max-new", args.max_new, 1),
        ("--temperature", args.temperature, 0),
        ("--top-k", args.top_k, 0),
        ("--repeats", args.repeats, 1),
    ):
        if value is not None and not least <= value < math.inf:
            raise ClusterError(f"{option} is {value:g}; it must be {least} or more")
    folder = RunFolder.existing(args.name)
    from distributed.generate import generate_text

    sampling = (args.max_new, args.temperature, args.top_k or None, args.seed)
    print(generate_text(folder, args.prompt, *sampling, step=args.step, repeats=args.repeats))
    return 0
