"""The rehearsal: everything that a bag does, once and in seconds, before hours of training.

The base model is loaded as a rank loads it, embeds the shortest and the longest text, takes one step on a
few rows, and is saved, compared with the base model's files, and loaded by sentence-transformers. DeepSpeed
is left out: its engine needs a process group, which a worker that runs other tasks must not keep, and it
depends on the cluster more than on the model. AdamW takes the step from the same gradient.
"""

import contextlib
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from boom_ray import storage
from boom_ray.artifacts.tensors import TensorPlace, read_places
from boom_ray.errors import BoomError, InputError, first_line
from boom_ray.model import adapter
from boom_ray.model.encoder import DTYPES, Encoder
from boom_ray.model.tokens import Tokens
from boom_ray.runtime import scratch
from boom_ray.train.bag_job import BagJob
from boom_ray.train.batch_loader import BatchLoader, TokenizedBatch
from boom_ray.train.engine import create_optimizer
from boom_ray.train.export import published_length, save_model
from boom_ray.train.loss import loss_terms
from boom_ray.train.partitions import trainable
from boom_ray.train.preparation import prepare
from boom_ray.train.step import TrainingStep, embedder

MIN_COSINE = {"fp32": 0.999, "bf16": 0.99, "fp16": 0.99}
LEARNING_RATE = 1e-5  # small enough that the step itself never diverges
NUM_ROWS, GROUP_SIZE = 2, 2
LISTED = 3  # differing tensors that an error names
LENGTHS = "train.query_max_length, train.passage_max_length, base_model.max_length"


def rehearse(job: BagJob, device: str) -> float:
    """Rehearse a bag with a few of its rows.

    Returns:
        Seconds it took.

    Raises:
        BoomError: if the base model cannot be trained with this recipe, naming the key to change.
        torch.OutOfMemoryError: if one worker has too little memory for the step, which ranks share.
    """
    started, recipe = time.monotonic(), job.recipe
    base = storage.local_directory(recipe.base_model.path)
    with _attempt(base, "loading it", "base_model.path"):
        encoder, loader = prepare(job, device)
    batch = _longest_batch(job, loader)
    length, min_cosine = published_length(recipe, encoder.spec), MIN_COSINE[recipe.train.precision]
    with _attempt(base, f"embedding texts of up to {length} tokens", f"{LENGTHS} or base_model.path"):
        _check_embeddings(base, encoder, batch, length, min_cosine)
    with _attempt(base, "a training step", "train.precision, train.lora, train.execution or base_model.path"):
        _step(job, encoder, batch)
    published = scratch.directory("rehearsal")
    try:
        with _attempt(base, "saving the trained model and loading it again", "base_model.path"):
            _check_published(job, encoder, batch, length, min_cosine, published)
    finally:
        shutil.rmtree(published, ignore_errors=True)
    return time.monotonic() - started


@contextlib.contextmanager
def _attempt(base: str, action: str, keys: str) -> Iterator[None]:
    """Turn what libraries raise into an error that names the base model and the keys to change."""
    try:
        yield
    except (BoomError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"{base}: {action} failed: {type(error).__name__}: {first_line(error)}. Change {keys}"
        ) from error


def _longest_batch(job: BagJob, loader: BatchLoader) -> TokenizedBatch:
    """A few rows of the largest task; its first query and its last passage are as long as texts can be."""
    task = max(loader.bag, key=lambda name: len(loader.bag[name]))
    rows = loader.bag[task][:NUM_ROWS]
    batch = replace(loader.collators[task], group_size=GROUP_SIZE)(rows, job.recipe.train.seed, 0)
    texts = list(batch.texts)
    for index in (0, -1):
        texts[index] = " ".join([texts[index] or "a"] * int(loader.limits(batch)[index]))
    return loader.tokenize(replace(batch, texts=texts), rows)


def _check_embeddings(
    base: str, encoder: Encoder, batch: TokenizedBatch, length: int, min_cosine: float
) -> None:
    """Embed texts of one token and of `length` tokens, alone and padded.

    Raises:
        InputError: if a vector has another length than the configuration states, is not a unit vector, or
            depends on the padding next to it; if the tokenizer knows nothing of the texts.
    """
    special = set(encoder.tokenizer.all_special_ids)
    if special.issuperset(batch.tokens.ids.tolist()):
        raise InputError(
            f"{base}: its tokenizer knows no token of the rows of task {batch.batch.task}. Check "
            "tokenizer.json, or choose another base_model.path"
        )
    shortest, longest = encoder.tokenize(["a", " ".join(["a", *batch.batch.texts])], length).lists()
    tokens = Tokens.of([shortest, (longest * length)[: length - 1] + longest[-1:]])
    together = encoder.encode_tokens(tokens, chunk_tokens=2 * length)
    alone = np.concatenate([encoder.encode_tokens(tokens[:1]), encoder.encode_tokens(tokens[1:])])
    if not np.allclose(np.linalg.norm(together, axis=1), 1, atol=0.01):
        raise InputError(f"{base}: its embeddings are not finite. Change train.precision or base_model.path")
    cosine = float((together * alone).sum(1).min())
    if cosine < min_cosine:
        raise InputError(
            f"{base}: a text alone and next to one of {length} tokens has embeddings of cosine {cosine:.4f}; "
            f"allowed: {min_cosine} or more. Choose another base_model.path or base_model.pooling"
        )


def _step(job: BagJob, encoder: Encoder, batch: TokenizedBatch) -> None:
    """One optimizer step with the loss and the chunks of the recipe.

    Raises:
        InputError: if the loss is not finite.
    """
    train = job.recipe.train
    optimizer = create_optimizer(encoder, train)
    for group in optimizer.param_groups:
        group["lr"] = min(train.learning_rate, LEARNING_RATE)
    step = TrainingStep(
        sum_over_ranks=lambda embeddings: None,
        backward=lambda scalar, is_last: scalar.backward(),
    )
    loss, _ = step(
        embed=embedder(encoder, encoder.collate, batch.tokens),
        texts=batch.texts,
        chunks=batch.chunks,
        num_kept=batch.counts.kept,
        num_texts=len(batch.texts),
        terms=loss_terms(batch.batch, train),
    )
    if not math.isfinite(loss.item()):
        raise InputError(
            f"{job.recipe.base_model.path}: the loss of the first rows of task {batch.batch.task} is "
            f"{loss.item()}. Set train.precision to bf16 or fp32"
        )
    norm = torch.nn.utils.clip_grad_norm_([p for p in encoder.parameters() if p.requires_grad], 1.0)
    if norm.isfinite():  # fp16 overflows until its loss is scaled, which DeepSpeed does
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _check_published(
    job: BagJob, encoder: Encoder, batch: TokenizedBatch, length: int, min_cosine: float, published: str
) -> None:
    """Save the model as a bag does, compare its tensors with the base model's, and embed with it.

    Raises:
        InputError: if a tensor is not in the base model's files, so that no merge could take its difference;
            if sentence-transformers loads another model than was saved.
    """
    from sentence_transformers import SentenceTransformer  # takes seconds

    recipe, base = job.recipe, storage.local_directory(job.recipe.base_model.path)
    texts, dtype = batch.batch.texts, DTYPES[recipe.train.save_dtype]
    vectors = encoder.eval().encode_tokens(encoder.tokenize(texts, length))
    trained = {
        name: weight.detach().to("cpu", dtype) for name, weight in trainable(encoder.transformer).items()
    }
    source = recipe.base_model.model_copy(update={"path": base})  # which sentence-transformers can read
    save_model(recipe.model_copy(update={"base_model": source}), encoder, trained, published)
    _check_tensors(published, base)
    device, precision = str(encoder.device), encoder.transformer.dtype
    encoder.to("cpu")  # frees the accelerator's memory for the second model
    model = SentenceTransformer(
        published, device=device, model_kwargs={"use_safetensors": True, "dtype": precision}
    )
    reference = model.encode(texts, convert_to_numpy=True)
    cosine = float((vectors * reference).sum(1).min()) if reference.shape == vectors.shape else 0.0
    if not cosine >= min_cosine:
        raise InputError(
            f"{base}: sentence-transformers reads the saved model otherwise: its embeddings have shape "
            f"{list(reference.shape)} and cosine {cosine:.4f} to ours, of shape {list(vectors.shape)}; "
            f"allowed: {min_cosine} or more. Choose another base_model.path or base_model.pooling"
        )


def _check_tensors(published: str, base: str) -> None:
    """Compare the tensors of a saved model, or the layers of a saved adapter, with the base model's files."""
    if adapter.is_adapter(published):
        adapter.read(published, adapter.read_config(published), base)
        return
    problems = header_differences(read_places(published), read_places(base))
    if problems:
        raise InputError.of(
            problems, f"{base}: the trained model has other tensors. Choose another base_model.path:"
        )


def header_differences(ours: dict[str, TensorPlace], base: dict[str, TensorPlace]) -> list[str]:
    """Tensors of a trained model that are not in the files of its base model, or of another kind there.

    The base model may put a prefix before all names (`model.`, `bert.`), and may have more tensors: a head.
    """
    longest = max(ours, key=len)
    prefixes = {name[: -len(longest)] for name in base if name.endswith(longest)} or {""}
    prefix = max(prefixes, key=lambda prefix: (sum(prefix + name in base for name in ours), -len(prefix)))
    problems = []
    for name, place in sorted(ours.items()):
        theirs = base.get(prefix + name)
        if theirs is None:
            problems.append(f"{name}: not in the base model")
        elif theirs.shape != place.shape:
            problems.append(f"{name}: shape {list(place.shape)}, in the base model {list(theirs.shape)}")
        elif theirs.dtype != place.dtype and not (theirs.is_floating and place.is_floating):
            problems.append(f"{name}: {place.dtype}, in the base model {theirs.dtype}")
    left_out = len(problems) - LISTED
    return problems[:LISTED] + ([f"{left_out} more"] if left_out > 0 else [])
