"""Serve the figures of all runs with TensorBoard, on loopback."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--port", type=int, default=6006, help="default: 6006")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")


def run(args: argparse.Namespace) -> int:
    """Replace this process by TensorBoard."""
    import os
    import sys

    from cluster.network import claim_port
    from distributed.run_folder import runs_root, writing

    port = claim_port(args.port, "--port")
    with writing(runs_root()):
        runs_root().mkdir(parents=True, exist_ok=True)
    print(f"TensorBoard of {runs_root()}: http://{args.host}:{port} (Ctrl-C ends it)", flush=True)
    command = [sys.executable, "-P", "-m", "tensorboard.main", "--logdir", str(runs_root()), "--host", args.host, "--port", str(port)]
    os.execv(sys.executable, command)
