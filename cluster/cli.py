"""The command line: finds the command, turns a user's mistake into one message and exit code 2.

Every command is a module in cluster/commands/ with `add_arguments(parser)` and `run(args) -> int`, imported only when
it is the one asked for, so that help is instant. A module with `PASS_THROUGH = True` gets the words after its name as
they are: `run(words) -> int`.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from types import ModuleType
from typing import NoReturn

from cluster.errors import USER_ERRORS, ClusterError
from cluster.exit_codes import INTERRUPTED, USER_ERROR

PROGRAM = "./launch.sh"

COMMANDS = {
    "prepare": "turn a recipe's sources into tokenizer and shards",
    "train": "start a run (default: configs/quickstart.yaml)",
    "dry-run": "a recipe's sizes and memory, and its first steps on small data",
    "submit": "send a run to a Ray cluster",
    "status": "list runs with state, step, loss and tokens/s (-f RUN follows)",
    "logs": "show a run's logs (-f follows)",
    "stop": "end a run after a checkpoint",
    "remove": "delete a run's folder",
    "resume": "go on with a run from its newest checkpoint",
    "tensorboard": "serve the figures of all runs on loopback",
    "eval": "held-out loss and perplexity of a run",
    "fields": "every field of a recipe: type or choices, default, meaning",
    "show": "a recipe with every default, as YAML",
    "sizes": "parameters, multiply-accumulates and bytes of a recipe's model, part by part",
    "match": "a recipe made as large or as costly as another one",
    "generate": "continue a text with a run's model",
    "compare": "train recipes side by side on equal terms and write a report",
    "doctor": "check this machine and say what to do about faults",
    "bench": "run a benchmark",
    "test": "run the tests (arguments go to pytest)",
    "soak": "a job through 200 faults, compared with the same job undisturbed",
}


def main(argv: list[str]) -> int:
    """Run one command; returns the exit code (cluster/exit_codes.py)."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    try:
        return run_command(argv[0], argv[1:])
    except USER_ERRORS as fault:
        print(f"mootron: {fault}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("mootron: interrupted", file=sys.stderr)
        return INTERRUPTED


def overview() -> str:
    """The commands with one line each."""
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    head = "Mootron trains Mixture-of-Experts Universal Transformers on many processes."
    return "\n".join([head, "", f"usage: {PROGRAM} COMMAND [arguments]", "", *lines, "", f"{PROGRAM} COMMAND --help tells more."])


def run_command(name: str, words: list[str]) -> int:
    """Import the command's module, read its arguments and run it."""
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"commands: {', '.join(COMMANDS)}"
        raise ClusterError(f"unknown command '{name}'; {hint}")
    module = command_module(name)
    if getattr(module, "PASS_THROUGH", False):
        return int(module.run(words))
    parser = CommandParser(prog=f"{PROGRAM} {name}", description=module.__doc__, allow_abbrev=False)
    module.add_arguments(parser)
    return int(module.run(parser.read(words)))


def command_module(name: str) -> ModuleType:
    """The module of a command; a dash in its name is an underscore there."""
    return importlib.import_module(f"cluster.commands.{name.replace('-', '_')}")


class CommandParser(argparse.ArgumentParser):
    """argparse whose complaints are ClusterErrors that suggest the near option."""

    def __init__(self, *, prog: str, description: str | None, allow_abbrev: bool = False) -> None:
        super().__init__(
            prog=prog, description=description, allow_abbrev=allow_abbrev, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def read(self, words: list[str]) -> argparse.Namespace:
        """Parse with options anywhere between the positional words."""
        args, unknown = self.parse_known_intermixed_args(words)
        if unknown:
            raise ClusterError(self._explain_unknown(unknown[0]))
        return args

    def error(self, message: str) -> NoReturn:
        """Called by argparse for a missing or malformed argument."""
        raise ClusterError(f"{message}; see {self.prog} --help")

    def _explain_unknown(self, word: str) -> str:
        if not word.startswith("-"):
            return f"'{word}' is one argument too many; see {self.prog} --help"
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        near = difflib.get_close_matches(word.partition("=")[0], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"options: {', '.join(known)}"
        return f"unknown option {word}; {hint}"
