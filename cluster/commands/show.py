"""Print a recipe as it would run: every field, defaults included, as YAML."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("words", nargs="*", metavar="RECIPE | field=value", help="recipe and changes to its fields")


def run(args: argparse.Namespace) -> int:
    """Check the recipe and print it."""
    from cluster.recipes import read_recipe
    from distributed.recipe_file import recipe_text

    print(recipe_text(read_recipe(args.words)), end="")
    return 0
