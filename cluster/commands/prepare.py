"""Turn a recipe's sources into a tokenizer and shards (train does it by itself when they are missing)."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("words", nargs="*", metavar="RECIPE | field=value", help="recipe (default: quickstart) and changes to its fields")


def run(args: argparse.Namespace) -> int:
    """Prepare, or check what is prepared."""
    from rich.console import Console

    from cluster.corpus import ensure_corpus
    from cluster.recipes import read_recipe
    from distributed.run_folder import data_folder

    console = Console()
    recipe = read_recipe(args.words)
    ensure_corpus(recipe, console)
    console.print(f"{data_folder(recipe)} is whole and fits the recipe", highlight=False, soft_wrap=True)
    return 0
