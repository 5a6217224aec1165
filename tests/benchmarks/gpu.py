"""What one GPU gives, in nine minutes: training, embedding and serving compared with peers, and the pipeline.

    python tests/benchmarks/gpu.py [--tiny] [SECTION ...]

    ceilings   matrix products, copies, transfers and launches: what the device can do at best
    merge      the two passes of a merge over tensors on the device, as a share of the copy
    train      the step in the shape of Qwen3-0.6B, and those of sentence-transformers and FlagEmbedding
    embed      from texts to vectors in the shapes of Qwen3-0.6B and 4B, and `SentenceTransformer.encode`
    serve      1, 8, 32 and 128 clients of boom-ray and of a plain server, and bare forward passes
    zero1      `boom-ray run` with ZeRO 1, then `embed` and `serve` of the model that it made
    zero3      `boom-ray run` with ZeRO 3, killed and resumed

Weights are random, in bfloat16. `full` texts have 512 tokens; `mixed` ones are lognormal with means of 15 %
(queries) and 35 % (passages) of that. MFU is the operations of the weights over the rate of a large matrix
product, measured in the same section; neither attention scores nor recomputation count. FlagEmbedding is left
out where it cannot be imported.

Each section is a process with a time limit; one that fails or is late is reported, and the others go on. The
results are JSON lines, and a table at the end. `$OUT` gets the same lines (`gpu.jsonl`), the fifteen longest
operations of the training step and of embedding (`profile_*.txt`), and the logs (`SECTION.log`). `--tiny`
runs all sections on a CPU: a test of the bench itself.
"""

import json
import os
import sys
import tempfile
import time
from typing import Any

import click
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

from tests.benchmarks.gpu_sections.process import run_section  # noqa: E402
from tests.benchmarks.gpu_sections.table import render  # noqa: E402

#: The most seconds that each section may take.
SECTIONS = {"ceilings": 40, "merge": 40, "train": 140, "embed": 130, "serve": 110, "zero1": 160, "zero3": 120}
ALL_SECONDS = 530  # the most that all may take together
TINY_SECONDS = 600  # the most that one may take on a CPU


@click.command()
@click.argument("sections", nargs=-1, type=click.Choice(list(SECTIONS)))
@click.option("--tiny", is_flag=True, help="Tiny shapes on a CPU.")
def main(sections: tuple[str, ...], tiny: bool) -> None:
    """Run the sections, by default all of them."""
    if not tiny and not torch.cuda.is_available():
        raise click.ClickException(
            f"no GPU: torch {torch.__version__} finds no CUDA device. Allowed is a machine with one; "
            "--tiny tests the bench on a CPU"
        )
    path = os.pathsep.join([ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": path, "RAY_ADDRESS": "local"}
    with tempfile.TemporaryDirectory(prefix="boom-ray-bench-", ignore_cleanup_errors=True) as scratch:
        out = os.path.abspath(os.environ.get("OUT") or scratch)
        os.chdir(ROOT)
        lines, passed = run_sections(sections or tuple(SECTIONS), tiny, scratch, out)
    print(render(lines))
    sys.exit(0 if passed else 1)


def run_sections(
    sections: tuple[str, ...], tiny: bool, scratch: str, out: str
) -> tuple[list[dict[str, Any]], bool]:
    """Run sections one after the other; returns all results, and whether no section failed."""
    os.makedirs(out, exist_ok=True)
    lines: list[dict[str, Any]] = []
    since, passed = time.monotonic(), True
    with open(os.path.join(out, "gpu.jsonl"), "a", encoding="utf-8") as file:

        def report(line: dict[str, Any]) -> None:
            lines.append(line)
            for target in (sys.stdout, file):
                print(json.dumps(line), file=target, flush=True)

        for name in sections:
            left = ALL_SECONDS - (time.monotonic() - since)
            limit = TINY_SECONDS if tiny else max(1.0, min(SECTIONS[name], left))
            options = [scratch, out, *(["--tiny"] if tiny else [])]
            passed &= run_section(name, options, os.path.join(out, f"{name}.log"), limit, report)
    return lines, passed


if __name__ == "__main__":
    main()
