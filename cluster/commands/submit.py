"""Send a run to a Ray cluster and return; status, logs and stop work on it as on any run.

Without --address the cluster is this machine's, started (on loopback) if none is running; it stays until
submit --end-cluster. Another cluster's nodes must share the folder MOOTRON_HOME (default: this project) under one path.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("words", nargs="*", metavar="RECIPE | field=value", help="recipe (default: as for train) and changes to its fields")
    parser.add_argument("--name", help="name of the run (default: the recipe's; with --from RUN-from-STEP)")
    parser.add_argument("--from", dest="branch_from", metavar="RUN[@STEP]", help="start from a checkpoint of another run")
    parser.add_argument("--nodes", type=int, help="spread the workers evenly over so many nodes")
    parser.add_argument("--gpus-per-node", type=int, help="workers a node, one a GPU")
    parser.add_argument("--address", help="the cluster's dashboard, http://host:8265 (default: this machine's cluster)")
    parser.add_argument("--end-cluster", action="store_true", help="end this machine's cluster and what runs on it")


def run(args: argparse.Namespace) -> int:
    """Check the recipe here, then send it."""
    from cluster.jobs import await_start, submit_job
    from cluster.local_cluster import end_cluster, ensure_cluster
    from cluster.new_run import NewRun

    if args.end_cluster:
        print("the local cluster has ended" if end_cluster() else "no local cluster was started by submit")
        return 0
    request = NewRun([*args.words, *_size_overrides(args.nodes, args.gpus_per_node)], args.name, args.branch_from)
    recipe = request.named_recipe()
    address = args.address or ensure_cluster()
    address = address if "://" in address else f"http://{address}"
    job = submit_job(recipe, args.branch_from, address)
    print(f"run {recipe.name} is job {job} at {address}", flush=True)
    print(f"  {await_start(job, recipe, address)}; its own words: ray job logs --address {address} {job}")
    print(f"  ./launch.sh status -f {recipe.name}    ./launch.sh logs -f {recipe.name}    ./launch.sh stop {recipe.name}")
    return 0


def _size_overrides(nodes: int | None, gpus_per_node: int | None) -> list[str]:
    from cluster.errors import ClusterError

    for option, value in (("--nodes", nodes), ("--gpus-per-node", gpus_per_node)):
        if value is not None and value < 1:
            raise ClusterError(f"{option} is {value}; it must be 1 or more")
    overrides = []
    if nodes is not None:
        overrides.append(f"cluster.nodes={nodes}")
    if gpus_per_node is not None:
        overrides.append(f"cluster.workers={(nodes or 1) * gpus_per_node}")
    return overrides
