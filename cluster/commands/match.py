"""A recipe made as large (--by params) or as costly (--by macs) as another one, by changing one field (and the name, to NAME_matched).

Without --to it is RECIPE's dense peer that is made and matched to RECIPE, NAME_dense: a layer for every visit, pre-layernorm.

The field is the feed-forward's own (experts, their width, sub-keys), else the model's width; --field names another. field=value changes
RECIPE first and is written into the result. Without --out the matched recipe is printed. MACs are those of a forward pass over one
window of RECIPE's data.seq_len.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("recipe", metavar="RECIPE", help="the recipe to change: a path or the name of a file in configs/")
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="changes to RECIPE, for example model.d_model=512")
    parser.add_argument("--to", metavar="OTHER", help="the recipe whose size is wanted (default: RECIPE's own, for its dense peer)")
    parser.add_argument("--by", required=True, choices=("params", "macs"), help="what is made equal")
    parser.add_argument("--field", metavar="F", help="the field to change, for example model.feed_forward.n_experts")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the matched recipe here")
    parser.add_argument("--force", action="store_true", help="replace FILE if there is one")


def run(args: argparse.Namespace) -> int:
    """Match, write, and say on standard error how near it came, so that standard output is the recipe alone."""
    import yaml

    from cluster.errors import ClusterError
    from cluster.recipes import find_recipe
    from distributed.recipe_edit import overridden, set_field, set_model
    from distributed.recipe_file import check_recipe, load_recipe
    from model.matching import dense_peer, match

    if args.out is not None and args.out.exists() and not args.force:
        raise ClusterError(f"--out {args.out} is there already; name another file, or replace it with --force")
    source = find_recipe(args.recipe)
    recipe, text = load_recipe(source, args.overrides), overridden(source, args.overrides)
    if args.to is None:
        other, target, start = source, recipe.model, dense_peer(recipe.model)
        text = set_field(set_model(text, start), "name", f"{recipe.name}_dense")
        text = set_field(text, "expert_parallel.size", 1) if recipe.expert_parallel.size > 1 else text
        what = f"dense peer of {source.name}"
    else:
        other, start = find_recipe(args.to), recipe.model
        target, what = load_recipe(other).model, source.name
        text = set_field(text, "name", f"{recipe.name}_matched")
    field = None if args.field is None else args.field.removeprefix("model.")
    matched = match(start, target, args.by, recipe.data.seq_len, field)
    changed = f"{what} with {' '.join([*args.overrides, f'model.{matched.field}={matched.value}'])}"
    text = f"# {changed}, which matches {other.name} by {args.by}.\n" + set_field(text, f"model.{matched.field}", matched.value)
    check_recipe(yaml.safe_load(text), changed)  # the rest of it may not fit
    if args.out is None:
        print(text, end="")
    else:
        try:
            args.out.write_text(text)
        except OSError as fault:
            raise ClusterError(f"--out {args.out}: {fault.strerror}; name a file in a folder that exists") from None
    unit = "parameters" if args.by == "params" else f"MACs a window of {recipe.data.seq_len} tokens"
    difference = matched.got - matched.wanted
    print(
        f"{other.name}: {matched.wanted:,} {unit}\n{changed}: {matched.got:,} ({difference:+,}, {difference / matched.wanted:+.4%})",
        file=sys.stderr,
    )
    return 0
