"""From texts to vectors in the shapes of Qwen3-0.6B and 4B, alternating with sentence-transformers."""

from functools import partial
from statistics import median
from typing import NamedTuple

from sentence_transformers import SentenceTransformer

from boom_ray.model.encoder import Encoder
from tests.benchmarks.gpu_sections import profile
from tests.benchmarks.gpu_sections.bench import Bench
from tests.benchmarks.gpu_sections.clock import (
    alternate,
    forget,
    median_seconds,
    product_rate,
    seconds_of,
    speedup,
)
from tests.benchmarks.gpu_sections.models import LONGEST, base_model, encoder, flops_per_token
from tests.benchmarks.gpu_sections.peer_encoder import is_packed, sentence_transformer
from tests.benchmarks.gpu_sections.samples import lengths, write_texts
from tests.benchmarks.gpu_sections.workload import Workload

OURS, PEER = "boom-ray", "sentence-transformers"
NUM_TEXTS = {("0.6B", "full"): 1024, ("0.6B", "mixed"): 2048, ("4B", "full"): 256, ("4B", "mixed"): 512}
BATCH_SIZES = (32, 128, 256)
SPEEDUPS, UTILIZATIONS = {"mixed": {"speedup": 2.0}}, {"full": {"mfu": 0.65}}  # targets
PROFILED = ("0.6B", "mixed")


class Encoders(NamedTuple):
    """Both encoders, with equal weights."""

    ours: Encoder
    peer: SentenceTransformer


def run(bench: Bench) -> None:
    """Emit the rates of both on full and on mixed lengths, for both shapes."""
    rate = product_rate(bench.device, bench.sized(8192, 256))
    for shape in ("0.6B", "4B"):
        both = Encoders(encoder(bench, shape), sentence_transformer(base_model(bench, shape), bench.device))
        for kind in ("full", "mixed"):
            numbers = lengths(kind, bench.sized(NUM_TEXTS[shape, kind], 12), bench.sized(LONGEST, 32))
            compare(bench, shape, kind, both, write_texts(both.ours.tokenizer, numbers), rate)
        del both
        forget()


def compare(bench: Bench, shape: str, kind: str, both: Encoders, texts: list[str], rate: float) -> None:
    """Alternate both on the same texts; the peer with the best of a few batch sizes."""
    ours, peer = both
    size = best_batch_size(peer, texts[: max(1, len(texts) // 4)])
    tools = {OURS: partial(ours.encode, texts), PEER: partial(peer.encode, texts, batch_size=size)}
    cosine = float((tools[OURS]() * tools[PEER]()).sum(1).min())
    spent = alternate(tools, rounds=bench.sized(3, 1), calls=1)
    tokens = ours.tokenize(texts)
    passes = partial(ours.encode_tokens, tokens)
    spent["tokenized"] = [median_seconds(passes, repeats=bench.sized(3, 1), warm=1)]
    count = int(tokens.lengths.sum())
    work = Workload(count, count * flops_per_token(peer[0].model), rate)
    found = {name: work.figures(median(seconds)) for name, seconds in spent.items()}
    case = f"{shape}, {kind} lengths"
    bench.emit(f"{PEER}, {case}", **found[PEER], batch_size=size, packed=is_packed(peer))
    compared = {"speedup": speedup(spent[OURS], spent[PEER]), "smallest_cosine": cosine}
    bench.emit(f"{OURS}, {case}", SPEEDUPS.get(kind, {}), **found[OURS], **compared)
    bench.emit(f"{OURS}, {case}, tokenized", UTILIZATIONS.get(kind, {}), **found["tokenized"])
    if (shape, kind) == PROFILED:
        profile.write(bench, "embed", passes)


def best_batch_size(peer: SentenceTransformer, texts: list[str]) -> int:
    """The batch size with which the peer is fastest on a sample, warmed up."""
    peer.encode(texts[: BATCH_SIZES[0]])
    seconds = {size: seconds_of(partial(peer.encode, texts, batch_size=size)) for size in BATCH_SIZES}
    return min(seconds, key=seconds.__getitem__)
