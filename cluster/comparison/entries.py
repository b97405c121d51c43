"""What a comparison trains: every recipe with every seed, each in a run folder of its own below the comparison's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ClusterError
from cluster.recipes import CONFIGS, find_recipe
from distributed.errors import RunError
from distributed.recipe import Recipe
from distributed.recipe_file import load_recipe
from distributed.run_folder import RunFolder, is_plain

DEFAULT_RECIPES = CONFIGS / "compare" / "small"


@dataclass(frozen=True)
class Entry:
    """One training run of a comparison: a recipe with one seed."""

    label: str
    seed: int
    recipe: Recipe
    run: RunFolder


@dataclass(frozen=True)
class Comparison:
    """A comparison's name, its recipes by label as they were read, the files they were read from, and all of its runs: seed by
    seed, so that the first seeds of all recipes are there before the second of one.
    """

    name: str
    recipes: dict[str, Recipe]
    paths: dict[str, Path]
    entries: list[Entry]

    @property
    def folder(self) -> Path:
        """Where its runs and its report lie."""
        return comparison_folder(self.name)


def comparison_folder(name: str) -> Path:
    """Where a comparison of that name lies.

    Raises:
        ClusterError: it is not a plain name.
    """
    if not is_plain(name):
        raise ClusterError(f"--name '{name}' must be a plain name without '/'")
    return RunFolder.named(name).path


def read_comparison(words: list[str], n_seeds: int, name: str | None = None) -> Comparison:
    """The comparison that the words after the command mean.

    Args:
        words: recipe files, folders of recipe files, and `field=value` changes to all of them.
        n_seeds: seeds 1..n: of initial weights, dropout and sample order, equal over the recipes.
        name: of the comparison; None: `compare-` and the folder that all recipes are in.

    Raises:
        ClusterError: no seeds, two recipes of one name, or no name for recipes of several folders. RunError: a recipe or a change is wrong.
    """
    if n_seeds < 1:
        raise ClusterError(f"--seeds is {n_seeds}; it must be 1 or more")
    paths = recipe_files([word for word in words if "=" not in word] or [str(DEFAULT_RECIPES)])
    overrides = [word for word in words if "=" in word]
    recipes: dict[str, Recipe] = {}
    for path in paths:
        recipe = load_recipe(path, overrides)
        if recipe.name in recipes:
            raise ClusterError(f"two recipes are named '{recipe.name}' (the second is {path}); give each a name of its own")
        recipes[recipe.name] = recipe
    name = name or default_name(paths)
    folder = comparison_folder(name)
    seeds = range(1, n_seeds + 1)
    entries = [entry(folder, recipe, seed) for seed in seeds for recipe in recipes.values()]
    return Comparison(name, recipes, dict(zip(recipes, paths, strict=True)), entries)


def default_name(paths: list[Path]) -> str:
    """`compare-` and the folder that the recipes are in.

    Raises:
        ClusterError: they are in several.
    """
    folders = sorted({path.resolve().parent for path in paths})
    if len(folders) > 1:
        raise ClusterError(f"the recipes are in several folders ({', '.join(map(str, folders))}); name the comparison with --name")
    return f"compare-{folders[0].name}"


def recipe_files(words: list[str]) -> list[Path]:
    """The files meant; a folder means the recipes in it, by name.

    Raises:
        ClusterError: a folder holds no recipe, or is not where it was sought. RunError: there is no such file.
    """
    files: list[Path] = []
    for word in words:
        folder = Path(word) if Path(word).is_dir() else CONFIGS / word
        files += _recipes_in(folder, word) if folder.is_dir() else [_recipe(word)]
    return files


def _recipes_in(folder: Path, word: str) -> list[Path]:
    found = sorted(folder.glob("*.yaml"))
    if not found:
        below = ", ".join(str(Path(word) / path.name) for path in sorted(folder.iterdir()) if any(path.glob("*.yaml")))
        raise ClusterError(f"folder {word} holds no recipe (*.yaml)" + (f"; choose one of {below}" if below else ""))
    return found


def _recipe(word: str) -> Path:
    try:
        return find_recipe(word)
    except RunError:
        folders = [str(path.relative_to(CONFIGS)) for path in sorted(CONFIGS.rglob("*")) if path.is_dir() and path.name == word]
        if not folders:
            raise
        raise ClusterError(f"recipe '{word}': no such file or folder; did you mean the folder {' or '.join(folders)}?") from None


def entry(folder: Path, recipe: Recipe, seed: int) -> Entry:
    """The run of `recipe` with `seed`, in a world of one. `data.seed` stays: it decides which documents are held out.

    Checkpoints at an address are told apart by run name alone, which other comparisons have too: theirs lie below the comparison's.
    """
    name, address = f"{recipe.name}-s{seed}", recipe.checkpoint.address
    below = None if address is None else f"{address.rstrip('/')}/{folder.name}"
    changes = {
        "name": name,
        "seed": seed,
        "data": recipe.data.model_copy(update={"order_seed": seed}),
        "train": recipe.train.model_copy(update={"engine": "plain"}),
        "checkpoint": recipe.checkpoint.model_copy(update={"address": below}),
    }
    return Entry(recipe.name, seed, recipe.model_copy(update=changes), RunFolder(folder / name))
