"""What a comparison trains: every recipe with every seed, each in a run folder of its own below the comparison's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ClusterError
from cluster.recipes import CODE_ROOT, find_recipe
from distributed.recipe import Recipe
from distributed.recipe_file import load_recipe
from distributed.run_folder import RunFolder

DEFAULT_RECIPES = "configs/compare/small"


@dataclass(frozen=True)
class Entry:
    """One training run of a comparison: a recipe with one seed."""

    label: str
    seed: int
    recipe: Recipe
    run: RunFolder


@dataclass(frozen=True)
class Comparison:
    """A comparison's name, its recipes by label as they were read, and all of its runs: seed by seed, so that the first
    seeds of all recipes are there before the second of one.
    """

    name: str
    recipes: dict[str, Recipe]
    entries: list[Entry]

    @property
    def folder(self) -> Path:
        """Where its runs and its report lie."""
        return comparison_folder(self.name)


def comparison_folder(name: str) -> Path:
    """Where a comparison of that name lies.

    Raises:
        RunError: it is not a plain name.
    """
    return RunFolder.named(name).path


def read_comparison(words: list[str], n_seeds: int, name: str | None = None) -> Comparison:
    """The comparison that the words after the command mean.

    Args:
        words: recipe files, folders of recipe files, and `field=value` changes to all of them.
        n_seeds: seeds 1..n: of initial weights, dropout and sample order, equal over the recipes.
        name: of the comparison; None: `compare-` and the folder of the first recipe.

    Raises:
        ClusterError: no seeds, or two recipes of one name. RunError: a recipe or a change is wrong.
    """
    if n_seeds < 1:
        raise ClusterError(f"--seeds is {n_seeds}; it must be 1 or more")
    paths = recipe_files([word for word in words if "=" not in word] or [str(CODE_ROOT / DEFAULT_RECIPES)])
    overrides = [word for word in words if "=" in word]
    recipes: dict[str, Recipe] = {}
    for path in paths:
        recipe = load_recipe(path, overrides)
        if recipe.name in recipes:
            raise ClusterError(f"two recipes are named '{recipe.name}' (the second is {path}); give each a name of its own")
        recipes[recipe.name] = recipe
    name = name or f"compare-{paths[0].resolve().parent.name}"
    folder = comparison_folder(name)
    seeds = range(1, n_seeds + 1)
    return Comparison(name, recipes, [entry(folder, recipe, seed) for seed in seeds for recipe in recipes.values()])


def recipe_files(words: list[str]) -> list[Path]:
    """The files meant; a folder means the recipes in it, by name.

    Raises:
        ClusterError: a folder holds no recipe. RunError: there is no such file.
    """
    files: list[Path] = []
    for word in words:
        folder = Path(word) if Path(word).is_dir() else CODE_ROOT / "configs" / word
        if not folder.is_dir():
            files.append(find_recipe(word))
            continue
        found = sorted(folder.glob("*.yaml"))
        if not found:
            raise ClusterError(f"folder {word} holds no recipe (*.yaml)")
        files += found
    return files


def entry(folder: Path, recipe: Recipe, seed: int) -> Entry:
    """The run of `recipe` with `seed`, in a world of one. `data.seed` stays: it decides which documents are held out."""
    name = f"{recipe.name}-s{seed}"
    changes = {
        "name": name,
        "seed": seed,
        "data": recipe.data.model_copy(update={"order_seed": seed}),
        "train": recipe.train.model_copy(update={"engine": "plain"}),
    }
    return Entry(recipe.name, seed, recipe.model_copy(update=changes), RunFolder(folder / name))
