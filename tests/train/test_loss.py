"""The loss against its definition, and the gradient of a step against autograd over the full batch."""

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch.nn.functional import normalize

from boom_ray.data.collate import NO_TEXT, Batch
from boom_ray.model.padded_layout import chunk_by_padded_tokens
from boom_ray.recipe import Train
from boom_ray.train import loss as losses
from boom_ray.train.loss import batch_loss, contrastive_loss, loss_terms
from boom_ray.train.step import TrainingStep


def make_batch(type, num_rows=5, group=4, num_passages=9, seed=0):
    """A batch with repeated passages, a repeated query, and an empty slot."""
    rng = np.random.default_rng(seed)
    queries = np.arange(num_rows)
    queries[-1] = 0
    candidates = np.array(
        [num_rows + rng.choice(num_passages, group, replace=False) for _ in range(num_rows)]
    )
    candidates[1, -1] = NO_TEXT
    positives = [[row, texts[0]] for row, texts in enumerate(candidates)]
    positives.insert(3, [2, candidates[3, 1]])
    count = num_rows + num_passages
    scores = rng.normal(size=candidates.shape).astype(np.float32)
    scores[candidates == NO_TEXT] = np.nan
    scores[3] = np.nan  # a row without teacher scores
    scores[4, 1] = np.nan  # a negative without a score
    texts, is_query = [str(i) for i in range(count)], np.arange(count) < num_rows
    return Batch(
        "t", type, texts, [""] * len(texts), is_query, queries, candidates, np.array(positives), scores
    )


def positives_of(batch, row):
    return batch.positives[batch.positives[:, 0] == row, 1]


def reference(vectors, batch, temperature, distillation=None):
    """The definition in loops: minus the log of a target's softmax among the candidates of its row."""

    def cross_entropy(anchor, target, others):
        scores = torch.stack([vectors[anchor] @ vectors[other] for other in [target, *others]]) / temperature
        return -torch.log_softmax(scores, 0)[0]

    def forward(i, slot):
        """Loss of a row with one of its candidates as the positive, without the candidates before it."""
        group = batch.candidates[i]
        positives = positives_of(batch, i)
        others = [(i, k) for k in range(slot + 1, len(group))]
        if batch.type in ("retrieval", "sts"):
            others += [(j, k) for j in range(len(batch.queries)) if j != i for k in range(len(group))]
        texts = [batch.candidates[index] for index in others]
        return cross_entropy(
            batch.queries[i], group[slot], [t for t in texts if t != NO_TEXT and t not in positives]
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
                   if j != i and other != query and group[0] not in positives_of(batch, j)]  # fmt: skip
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
        np.arange(rows), candidates, np.column_stack([np.arange(rows), candidates[:, 0]]),
        np.full(candidates.shape, np.nan, np.float32),
    )  # fmt: skip
    peer = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=20)  # type: ignore[arg-type]
    columns = [vectors[:rows], *(vectors[candidates[:, slot]] for slot in range(group))]
    expected = peer.compute_loss_from_embeddings(columns, None)
    assert contrastive_loss(vectors, batch, 0.05).item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("type", ["retrieval", "sts", "classification"])
@pytest.mark.parametrize(("num_ranks", "max_logits"), [(1, 40), (2, 10**9), (3, 1), (7, 10**9)])
def test_the_terms_of_all_ranks_sum_to_the_loss_and_its_gradient(type, num_ranks, max_logits, monkeypatch):
    monkeypatch.setattr(losses, "MAX_LOGITS", max_logits)
    batch, train = make_batch(type), Train(temperature=0.05, distillation="kl_div", matryoshka=[4])
    ours, theirs = (unit_vectors(len(batch.texts), 0).requires_grad_() for _ in range(2))
    expected = batch_loss(theirs, batch, 0.05, "kl_div", [4])
    expected.backward()
    terms = [list(loss_terms(batch, train, rank, num_ranks)) for rank in range(num_ranks)]
    assert sum(map(len, terms)) == (5 if num_ranks > 2 else 3 if num_ranks == 1 else 2), "20 logits a row"
    total = sum(term(ours) for own in terms for term in own)
    total.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("chunk_tokens", "kept"), [(8, 1), (40, 1), (40, 2), (10**6, 1)])
def test_the_gradient_of_a_step_is_that_of_the_full_batch_for_any_chunks(chunk_tokens, kept):
    batch = make_batch("retrieval")
    inputs = torch.randn(len(batch.texts), 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model, reference_model = (torch.nn.Linear(5, 6, dtype=torch.float64) for _ in range(2))
    reference_model.load_state_dict(model.state_dict())

    def embed(net, chunk):
        return torch.nn.functional.normalize(net(inputs[torch.from_numpy(chunk)]), dim=-1)

    expected = contrastive_loss(embed(reference_model, np.arange(len(inputs))), batch, 0.05)
    expected.backward()
    chunks, passes, flags = chunk_by_padded_tokens(np.full(len(inputs), 8), chunk_tokens), [], []

    def counted(chunk):
        passes.append((chunk.tolist(), torch.is_grad_enabled()))
        return embed(model, chunk)

    def backward(scalar, is_last):
        flags.append(is_last)
        scalar.backward()

    step = TrainingStep(lambda tensor: tensor, backward)
    terms, texts = loss_terms(batch, Train(temperature=0.05)), np.arange(len(inputs))
    loss, _ = step(counted, texts, chunks, kept, len(inputs), terms)
    assert [chunk for chunk, keeps_graph in passes if keeps_graph] == [chunk.tolist() for chunk in chunks]
    assert len(passes) == 2 * len(chunks) - kept, "all but the kept ones twice"
    assert flags == [False] * (len(chunks) - kept) + [True]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(model.weight.grad, reference_model.weight.grad, rtol=1e-9, atol=1e-12)
