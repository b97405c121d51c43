"""Recipes as a user names them: a path or the name of a file in configs/, followed by `field.name=value` overrides."""

from __future__ import annotations

import difflib
from pathlib import Path

from distributed.errors import RunError
from distributed.recipe import Recipe
from distributed.recipe_file import CONFIGS, PARTS, find_file, load_recipe

CODE_ROOT = CONFIGS.parent
DEFAULT_RECIPE = "quickstart"


def split_words(words: list[str]) -> tuple[str, list[str]]:
    """Divide the words after a command into (recipe, overrides); the recipe is the one without '='.

    Raises:
        RunError: more than one word names a recipe.
    """
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise RunError(f"two recipes given, '{names[0]}' and '{names[1]}'; a field is changed by field=value, for example train.lr=3e-4")
    return (names[0] if names else DEFAULT_RECIPE), [word for word in words if "=" in word]


def find_recipe(name: str) -> Path:
    """The file that `name` means; see `distributed.recipe_file.find_file`.

    Raises:
        RunError: there is no such file; the message suggests the nearest one in configs/.
    """
    path = find_file(name)
    if path is not None:
        return path
    known = [path.relative_to(CONFIGS).with_suffix("") for path in sorted(CONFIGS.rglob("*.yaml")) if path.parent != PARTS]
    meant = {path.name: [other for other in known if other.name == path.name] for path in known} | {str(path): [path] for path in known}
    near = difflib.get_close_matches(str(Path(name).with_suffix("")), meant, n=1, cutoff=0.5)
    chosen = " or ".join(f"'{path}'" for path in meant[near[0]]) if near else ""
    hint = f"did you mean {chosen}?" if near else f"recipes in configs/: {', '.join(map(str, known))}"
    raise RunError(f"recipe '{name}': no such file; {hint}")


def read_recipe(words: list[str], name: str | None = None) -> Recipe:
    """The checked recipe of a command's words; `name` replaces the run's name."""
    recipe_name, overrides = split_words(words)
    if name is not None:
        overrides = [*overrides, f"name='{name}'"]
    return load_recipe(find_recipe(recipe_name), overrides)
