"""The loss against plain definitions, and the step's gradient against autograd over the whole batch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from boom_ray.data.collate import NO_TEXT, Batch
from boom_ray.train.loss import contrastive_loss
from boom_ray.train.step import Step, share_chunks


def make_batch(type, num_rows=5, group=4, num_passages=9, seed=0):
    """A batch with repeated passages, a repeated query, and an empty place."""
    rng = np.random.default_rng(seed)
    queries = np.arange(num_rows)
    queries[-1] = 0
    candidates = np.array(
        [num_rows + rng.choice(num_passages, group, replace=False) for _ in range(num_rows)]
    )
    candidates[1, -1] = NO_TEXT
    positives = [np.array([row[0]]) for row in candidates]
    positives[2] = np.array([candidates[2, 0], candidates[3, 1]])
    count = num_rows + num_passages
    return Batch(
        "t", type, [str(i) for i in range(count)], np.arange(count) < num_rows, queries, candidates, positives
    )


def reference(vectors, batch, temperature):
    """The definition in loops: minus the log of the positive's share among what counts for the row."""

    def share(anchor, target, others):
        scores = torch.stack([vectors[anchor] @ vectors[other] for other in [target, *others]]) / temperature
        return -torch.log_softmax(scores, 0)[0]

    losses, backward = [], []
    for i, (query, group) in enumerate(zip(batch.queries, batch.candidates, strict=True)):
        own = [c for c in group[1:] if c != NO_TEXT and c not in batch.positives[i]]
        foreign = [c for j, other in enumerate(batch.candidates) if j != i for c in other]
        foreign = [c for c in foreign if c != NO_TEXT and c not in batch.positives[i]]
        in_batch = batch.type in ("retrieval", "sts")
        losses.append(share(query, group[0], own + foreign if in_batch else own))
        anchors = [other for j, other in enumerate(batch.queries)
                   if j != i and other != query and group[0] not in batch.positives[j]]  # fmt: skip
        backward.append(share(group[0], query, anchors))
    forward = torch.stack(losses).mean()
    return (forward + torch.stack(backward).mean()) / 2 if batch.type == "sts" else forward


@pytest.mark.parametrize("type", ["retrieval", "sts", "classification", "clustering"])
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_are_those_of_the_definition(type, seed):
    batch = make_batch(type, seed=seed)
    torch.manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(len(batch.texts), 6, dtype=torch.float64), dim=-1)
    ours, theirs = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    loss, expected = contrastive_loss(ours, batch, 0.05), reference(theirs, batch, 0.05)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("grad_cache", [False, True])
@pytest.mark.parametrize("chunk_tokens", [8, 40, 10**6])
def test_the_step_gives_the_gradient_of_the_whole_batch_however_it_is_cut(grad_cache, chunk_tokens):
    batch = make_batch("retrieval")
    inputs = torch.randn(len(batch.texts), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model, whole = (torch.nn.Linear(5, 6, dtype=torch.float64) for _ in range(2))
    whole.load_state_dict(model.state_dict())

    def embed(net, chunk):
        return torch.nn.functional.normalize(net(inputs[torch.from_numpy(chunk)]), dim=-1)

    expected = contrastive_loss(embed(whole, np.arange(len(inputs))), batch, 0.05)
    expected.backward()
    chunks = share_chunks(np.full(len(inputs), 8), 1, chunk_tokens)[0]
    step = Step(lambda tensor: tensor, lambda scalar, last: scalar.backward(), grad_cache)
    loss, _ = step(
        lambda chunk: embed(model, chunk), chunks, len(inputs), lambda e: contrastive_loss(e, batch, 0.05)
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(model.weight.grad, whole.weight.grad, rtol=1e-9, atol=1e-12)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 300))
def test_every_text_is_dealt_once_and_all_ranks_run_as_many_chunks(lengths, num_ranks, chunk_tokens):
    shares = share_chunks(np.array(lengths), num_ranks, chunk_tokens)
    assert len(shares) == num_ranks and len({len(chunks) for chunks in shares}) == 1
    dealt = [index for chunks in shares for chunk in chunks for index in chunk.tolist()]
    assert sorted(dealt) == list(range(len(lengths)))
