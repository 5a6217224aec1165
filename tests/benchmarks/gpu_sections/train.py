"""The training step in the shape of Qwen3-0.6B, alternating with those of other libraries."""

from statistics import median

from transformers import AutoTokenizer

from tests.benchmarks.gpu_sections import profile
from tests.benchmarks.gpu_sections.bench import Bench
from tests.benchmarks.gpu_sections.clock import Work, alternate, forget, product_rate, speedup
from tests.benchmarks.gpu_sections.models import LONGEST, base_model, flops_per_token
from tests.benchmarks.gpu_sections.our_step import OurStep, process_group
from tests.benchmarks.gpu_sections.peer_steps import (
    fastest,
    flag_embedding_steps,
    sentence_transformers_steps,
)
from tests.benchmarks.gpu_sections.samples import Row, write_rows
from tests.benchmarks.gpu_sections.workload import Workload

GROUP = 8
OURS = "boom-ray"
NUM_ROWS = {"full": 32, "mixed": 64}
TARGETS = {"full": {"mfu": 0.45}, "mixed": {"speedup": 1.5}}


def run(bench: Bench) -> None:
    """Emit the rates of all tools on full and on mixed lengths."""
    process_group(bench)
    rate = product_rate(bench.device, bench.sized(8192, 256))
    tokenizer = AutoTokenizer.from_pretrained(base_model(bench, "0.6B"))
    longest = bench.sized(LONGEST, 32)
    for kind, num_rows in NUM_ROWS.items():
        rows = write_rows(tokenizer, kind, bench.sized(num_rows, 4), GROUP, longest)
        compare(bench, kind, rows, longest, rate)
        forget()


def compare(bench: Bench, kind: str, rows: list[Row], longest: int, rate: float) -> None:
    """Alternate the tools on one batch."""
    peers = peer_steps(bench, rows, longest)
    ours = OurStep(bench, kind, rows, longest)
    first = ours()
    steps = {OURS: ours, **{name: step for name, (_, step) in peers.items()}}
    spent = alternate(steps, rounds=bench.sized(3, 1), calls=bench.sized(2, 1))
    operations = 3 * first.tokens * flops_per_token(ours.encoder.transformer)
    work = Workload(first.tokens, operations, rate)
    found = {name: work.figures(median(seconds)) for name, seconds in spent.items()}
    for name, (setting, _) in peers.items():
        bench.emit(f"{name}, {kind} lengths", **found[name], setting=setting)
    compared = {"speedup": speedup(spent.pop(OURS), *spent.values()), "tokens": first.tokens}
    bench.emit(f"{OURS}, {kind} lengths", TARGETS[kind], **found[OURS], **compared, loss=first.loss)
    if kind == "full":
        profile.write(bench, "train", ours)
    ours.close()


def peer_steps(bench: Bench, rows: list[Row], longest: int) -> dict[str, tuple[str, Work]]:
    """The fastest setting and step of every library that can be used."""
    base = base_model(bench, "0.6B")
    made = {"sentence-transformers": fastest(sentence_transformers_steps(base, bench.device, rows, longest))}
    try:
        made["FlagEmbedding"] = fastest(flag_embedding_steps(base, bench.device, rows, longest))
    except Exception as error:  # its import fails in many ways, with old and new versions of transformers
        bench.emit("FlagEmbedding, left out", reason=f"{type(error).__name__}: {error}"[:200])
    return made
