"""The command line: parses, calls, prints. Each command imports what it needs when it is called."""

from boom_ray.cli import embed, evaluate, history, merge, runs, serve
from boom_ray.cli.group import job, main

__all__ = ["embed", "evaluate", "history", "job", "main", "merge", "runs", "serve"]
