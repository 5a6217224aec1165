"""The loss against its definition, and the gradient of a step against autograd over the full batch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch.nn.functional import normalize

from boom_ray.data.collate import NO_TEXT, Batch
from boom_ray.model.packed_layout import chunk_by_tokens
from boom_ray.model.padded_layout import chunk_by_padded_tokens
from boom_ray.train.loss import batch_loss, contrastive_loss
from boom_ray.train.step import TrainingStep, share_chunks


def make_batch(type, num_rows=5, group=4, num_passages=9, seed=0):
    """A batch with repeated passages, a repeated query, and an empty slot."""
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
    scores = rng.normal(size=candidates.shape).astype(np.float32)
    scores[candidates == NO_TEXT] = np.nan
    scores[3] = np.nan  # a row without teacher scores
    scores[4, 1] = np.nan  # a negative without a score
    texts, is_query = [str(i) for i in range(count)], np.arange(count) < num_rows
    return Batch("t", type, texts, [""] * len(texts), is_query, queries, candidates, positives, scores)


def reference(vectors, batch, temperature, distillation=None):
    """The definition in loops: minus the log of a target's softmax among the candidates of its row."""

    def cross_entropy(anchor, target, others):
        scores = torch.stack([vectors[anchor] @ vectors[other] for other in [target, *others]]) / temperature
        return -torch.log_softmax(scores, 0)[0]

    def forward(i, slot):
        """Loss of a row with one of its candidates as the positive, without the candidates before it."""
        group = batch.candidates[i]
        others = [(i, k) for k in range(slot + 1, len(group))]
        if batch.type in ("retrieval", "sts"):
            others += [(j, k) for j in range(len(batch.queries)) if j != i for k in range(len(group))]
        texts = [batch.candidates[index] for index in others]
        return cross_entropy(
            batch.queries[i], group[slot], [t for t in texts if t != NO_TEXT and t not in batch.positives[i]]
        )

    losses, backward = [], []
    for i, query in enumerate(batch.queries):
        loss, scores, group = forward(i, 0), batch.scores[i], batch.candidates[i]
        scored = [k for k in range(len(group)) if k == 0 or not np.isnan(scores[[0, k]]).any()]
        teacher = torch.softmax(torch.tensor(np.nan_to_num(scores[scored]), dtype=vectors.dtype), 0)
        if distillation == "kl_div":
            student = torch.stack([vectors[query] @ vectors[group[k]] for k in scored]) / temperature
            loss = loss - (teacher * torch.log_softmax(student, 0)).sum()
        if distillation == "m3_kd":
            loss = sum(weight * forward(i, k) for weight, k in zip(teacher, scored, strict=True))
        losses.append(loss)
        anchors = [other for j, other in enumerate(batch.queries)
                   if j != i and other != query and group[0] not in batch.positives[j]]  # fmt: skip
        backward.append(cross_entropy(group[0], query, anchors))
    forward_loss = torch.stack(losses).mean()
    return (forward_loss + torch.stack(backward).mean()) / 2 if batch.type == "sts" else forward_loss


def unit_vectors(count, seed, dimension=6):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, dimension, dtype=torch.float64, generator=generator), dim=-1)


@pytest.mark.parametrize("type", ["retrieval", "sts", "classification", "clustering"])
@pytest.mark.parametrize("distillation", [None, "kl_div", "m3_kd"])
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_match_the_definition(type, distillation, seed):
    batch = make_batch(type, seed=seed)
    vectors = unit_vectors(len(batch.texts), seed)
    ours, theirs = vectors.clone().requires_grad_(), vectors.clone().requires_grad_()
    loss = contrastive_loss(ours, batch, 0.05, distillation)
    expected = reference(theirs, batch, 0.05, distillation)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_the_matryoshka_loss_is_the_mean_over_lengths():
    batch = make_batch("retrieval")
    vectors = unit_vectors(len(batch.texts), 0)
    truncated = [normalize(vectors[:, :length], dim=-1) for length in (2, 4, 6)]
    expected = torch.stack([reference(part, batch, 0.05) for part in truncated]).mean()
    assert batch_loss(vectors, batch, 0.05, matryoshka=[4, 2]).item() == pytest.approx(
        expected.item(), rel=1e-9
    )


@pytest.mark.parametrize("negatives", [0, 2])
def test_the_loss_matches_sentence_transformers(negatives):
    rows, group = 6, 1 + negatives
    vectors = unit_vectors(rows * (1 + group), 1)
    candidates = rows + np.arange(rows * group).reshape(rows, group)
    batch = Batch(
        "t", "retrieval", [str(i) for i in range(len(vectors))], [""] * len(vectors),
        np.arange(len(vectors)) < rows,
        np.arange(rows), candidates, [row[:1] for row in candidates],
        np.full(candidates.shape, np.nan, np.float32),
    )  # fmt: skip
    peer = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=20)  # type: ignore[arg-type]
    columns = [vectors[:rows], *(vectors[candidates[:, slot]] for slot in range(group))]
    expected = peer.compute_loss_from_embeddings(columns, None)
    assert contrastive_loss(vectors, batch, 0.05).item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("grad_cache", [False, True])
@pytest.mark.parametrize("chunk_tokens", [8, 40, 10**6])
def test_the_gradient_of_a_step_is_that_of_the_full_batch_for_any_chunks(grad_cache, chunk_tokens):
    batch = make_batch("retrieval")
    inputs = torch.randn(len(batch.texts), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model, reference_model = (torch.nn.Linear(5, 6, dtype=torch.float64) for _ in range(2))
    reference_model.load_state_dict(model.state_dict())

    def embed(net, chunk):
        return torch.nn.functional.normalize(net(inputs[torch.from_numpy(chunk)]), dim=-1)

    expected = contrastive_loss(embed(reference_model, np.arange(len(inputs))), batch, 0.05)
    expected.backward()
    chunks = chunk_by_padded_tokens(np.full(len(inputs), 8), chunk_tokens)
    step = TrainingStep(lambda tensor: tensor, lambda scalar, last: scalar.backward(), grad_cache)
    loss, _ = step(
        lambda chunk: embed(model, chunk), chunks, len(inputs), lambda e: contrastive_loss(e, batch, 0.05)
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(model.weight.grad, reference_model.weight.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cut", [chunk_by_padded_tokens, chunk_by_tokens])
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 300))
def test_every_text_has_one_chunk_and_all_ranks_have_equally_many(cut, lengths, num_ranks, chunk_tokens):
    parts = share_chunks(np.array(lengths), num_ranks, lambda part: cut(part, chunk_tokens))
    assert len(parts) == num_ranks and len({len(chunks) for chunks in parts}) == 1
    indices = [index for chunks in parts for chunk in chunks for index in chunk.tolist()]
    assert sorted(indices) == list(range(len(lengths)))
