"""Run a benchmark: `bench NAME [its arguments]`; without a name, list them."""

from __future__ import annotations

PASS_THROUGH = True


def run(words: list[str]) -> int:
    """Call `benchmarks.<name>.main(arguments)`.

    Raises:
        ClusterError: there is no such benchmark.
    """
    import difflib
    import importlib

    from cluster.errors import ClusterError

    known = benchmarks()
    if not words or words[0] in ("-h", "--help"):
        for name, text in known.items():
            print(f"  {name:<16}  {text}")
        return 0
    name = words[0]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"benchmarks: {', '.join(known) or 'none'}"
        raise ClusterError(f"unknown benchmark '{name}'; {hint}")
    return int(importlib.import_module(f"benchmarks.{name}").main(words[1:]) or 0)


def benchmarks() -> dict[str, str]:
    """Names and first docstring lines of the files in benchmarks/ that have a `main`; nothing is imported."""
    import ast
    from pathlib import Path

    found = {}
    # Not by way of cluster.recipes: a bench must start on a machine that cannot read YAML.
    for path in sorted((Path(__file__).resolve().parents[2] / "benchmarks").glob("[a-z]*.py")):
        tree = ast.parse(path.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found
