"""The command line: parses, calls, prints. Each verb imports what it needs when it is called."""

from boom_ray.cli import embed, evaluate, history, merge, runs, serve
from boom_ray.cli.group import main

__all__ = ["embed", "evaluate", "history", "main", "merge", "runs", "serve"]
