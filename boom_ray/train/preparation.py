"""The encoder and the batches of one rank, ready to be trained."""

import ray.util
import torch
from torch.nn.modules.dropout import _DropoutNd

from boom_ray import artifacts, storage
from boom_ray.errors import StorageError
from boom_ray.model import directory
from boom_ray.model.encoder import DTYPES, Encoder
from boom_ray.train import lora
from boom_ray.train.bag_job import BagJob
from boom_ray.train.batch_loader import BatchLoader


def prepare(job: BagJob, device: str, rank: int = 0, num_ranks: int = 1) -> tuple[Encoder, BatchLoader]:
    """Load the encoder and the batches of a bag, for one of its ranks.

    Args:
        device: The torch device of this process.

    Raises:
        StorageError: if this node cannot read the run's storage.
        InputError: if the base model cannot be loaded or trained as the recipe requires.
    """
    if artifacts.read_record(job.corpus) is None:
        raise StorageError(
            f"{job.recipe.storage}: node {ray.util.get_node_ip_address()} cannot read the files that the "
            "driver stored there. Use a storage that all nodes share, such as NFS or an object store"
        )
    encoder = load_trainable(job, storage.local_directory(job.recipe.base_model.path), device)
    return encoder, BatchLoader(job, encoder, rank, num_ranks)


def load_trainable(job: BagJob, base: str, device: str) -> Encoder:
    """Load the base model for training.

    Args:
        base: Local directory of the base model.
    """
    train = job.recipe.train
    if train.execution.deterministic:
        torch.use_deterministic_algorithms(True)
        # DeepSpeed's buckets are written before they are read. The module has properties without types.
        setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    encoder = directory.load_encoder(
        base,
        job.recipe.base_model,
        dtype=DTYPES[train.precision],
        device=device,
        attention=train.execution.attention,
    ).train()
    disable_dropout(encoder)
    for name, parameter in encoder.transformer.named_parameters():
        # The loss does not depend on BERT's pooler, so that it would never get a gradient.
        parameter.requires_grad_(not name.startswith("pooler."))
    if train.lora:
        torch.manual_seed(train.seed)  # equal adapters on all ranks and in every attempt
        lora.attach(encoder.transformer, train.lora)
    if train.execution.gradient_checkpointing:
        encoder.transformer.gradient_checkpointing_enable({"use_reentrant": False})
    return encoder


def disable_dropout(encoder: Encoder) -> None:
    """Disable dropout, with which the gradient of a batch would depend on its partition into chunks.

    It is a layer in some models, and a number that a layer passes to a function in others (`dropout` in OPT,
    `attention_dropout` in Qwen3, `layerdrop`).
    """
    for module in encoder.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("dropout" in name or "layerdrop" in name):
                setattr(module, name, 0.0)
