"""Merge methods that decide element by element, which no Gram matrix determines: TIES and DARE.

They work on task vectors, block by block as `boom_ray.merge.gram` does. Whole tensors enter only through
counts: the threshold of TIES is found exactly, from two histograms over the bits of the magnitudes, for any
size of the tensor and however it is cut.
"""

from typing import Any, Protocol

import torch
import xxhash
from torch import Tensor

from boom_ray.merge.gram import BLOCK, Pieces, blocks, combine
from boom_ray.merge.methods import METHODS, Method, coefficients_of
from boom_ray.recipe import Merge

FINE_BITS = 15  # of the 31 bits of a float32 magnitude; the first histogram counts the other 16


class Combination(Protocol):
    """How one tensor of M models becomes one; each tensor has its own instance."""

    #: Passes over the tensor before `combined`; the first also accumulates the Gram matrix.
    num_scans: int

    def scan(self, number: int, pieces: Pieces, work: torch.dtype, is_last: bool) -> None:
        """Process pieces in pass `number`; `is_last` marks the last pieces of the pass."""

    def finalize(self, products: Tensor) -> None:
        """Receive the Gram matrix, [M, M] float64, after the last pass."""

    def combined(self, pieces: Pieces, start: int, work: torch.dtype, output: torch.dtype) -> Tensor:
        """The merged piece, [n] of `output`, that begins at element `start` of the tensor."""


def combination(settings: Merge, weights: Tensor, name: str) -> Combination:
    """The combination of one tensor.

    Args:
        weights: [M] float64.
        name: Name of the tensor, which random choices depend on.
    """
    method = METHODS[settings.method]
    if method.coefficients is not None:
        return ByGram(weights, settings)
    return _class_of(method)(weights, settings, name)


def num_scans(method: str) -> int:
    """Passes over a tensor before it can be combined."""
    return ByGram.num_scans if METHODS[method].coefficients else _class_of(METHODS[method]).num_scans


def _class_of(method: Method) -> Any:
    return globals()[str(method.by_element)]


class ByGram:
    """Any method that is a function of the Gram matrix."""

    num_scans = 1

    def __init__(self, weights: Tensor, settings: Merge) -> None:
        self.weights, self.settings = weights, settings
        self.coefficients = weights

    def scan(self, number: int, pieces: Pieces, work: torch.dtype, is_last: bool) -> None:
        """Needs only the Gram matrix."""

    def finalize(self, products: Tensor) -> None:
        """Compute the coefficients; raises what the method raises."""
        self.coefficients = torch.from_numpy(
            coefficients_of(self.settings, self.weights.numpy(), products.numpy())
        )

    def combined(self, pieces: Pieces, start: int, work: torch.dtype, output: torch.dtype) -> Tensor:
        """See `boom_ray.merge.gram.combine`."""
        return combine(pieces, self.coefficients, work, output)


class Ties:
    """TIES (arXiv 2306.01708): trim task vectors, elect a sign per element, average the values that agree.

    Each task vector keeps its `density` largest magnitudes, and all that equal the smallest of those. The
    sign of an element is the sign of the weighted sum. The result is the weighted mean of the values with
    that sign.
    """

    num_scans = 2

    def __init__(self, weights: Tensor, settings: Merge, name: str) -> None:
        self.weights, self.settings = weights, settings
        self.counts = torch.zeros(len(weights), 1 << (31 - FINE_BITS), dtype=torch.int64)
        self.fine = torch.zeros(len(weights), 1 << FINE_BITS, dtype=torch.int64)
        self.bins = self.ranks = self.thresholds = torch.zeros(len(weights), dtype=torch.int64)

    def scan(self, number: int, pieces: Pieces, work: torch.dtype, is_last: bool) -> None:
        """Count magnitudes by their upper bits; in the second pass, by the lower bits within one upper bin.

        One histogram over all 31 bits would take 16 GiB per model; sorting would need the whole tensor.
        """
        counts = (self.counts, self.fine)[number]
        for _, block in blocks(pieces, work, centred=True):
            for model, bits in enumerate(_magnitude_bits(block[:-1])):
                upper = bits >> FINE_BITS
                chosen = upper if number == 0 else bits[upper == self.bins[model]] & ((1 << FINE_BITS) - 1)
                counts[model] += torch.bincount(chosen, minlength=counts.shape[1])
        if is_last:
            self._narrow(number)

    def _narrow(self, number: int) -> None:
        """Find the bin of the threshold, or the threshold within that bin."""
        if number == 0:
            total = self.counts.sum(dim=1)
            densities = torch.tensor(self.settings.densities(len(total)), dtype=torch.float64)
            keep = (densities * total).long().clamp(min=1)
            self.bins, self.ranks = _kth_largest(self.counts, keep)
        else:
            bins, _ = _kth_largest(self.fine, self.ranks)
            self.thresholds = (self.bins << FINE_BITS) + bins

    def finalize(self, products: Tensor) -> None:
        """Needs no Gram matrix."""

    def combined(self, pieces: Pieces, start: int, work: torch.dtype, output: torch.dtype) -> Tensor:
        """The elected mean of the trimmed task vectors, added to the base."""
        result = torch.empty(len(pieces[0]), dtype=output)
        weights = self.weights.to(work)[:, None]
        for begin, block in blocks(pieces, work, centred=True):
            kept = _magnitude_bits(block[:-1]) >= self.thresholds[:, None]
            deltas = torch.where(kept, block[:-1] * weights, 0.0)
            sign = torch.where(deltas.sum(dim=0) >= 0, 1.0, -1.0).to(work)
            agrees = deltas.sign() == sign
            mean = (deltas * agrees).sum(dim=0)
            if self.settings.normalize is not False:
                divisor = (agrees * weights).sum(dim=0)
                mean /= torch.where(divisor == 0, 1.0, divisor)
            result[begin : begin + BLOCK] = _scaled(block, mean, self.settings)
        return result


class DareLinear:
    """DARE (arXiv 2311.03099): drop random elements of task vectors, rescale the rest, add linearly.

    The choice depends only on seed, tensor, model and position: it is the same however the work is cut.
    """

    num_scans = 1

    def __init__(self, weights: Tensor, settings: Merge, name: str) -> None:
        self.weights, self.settings, self.name = weights, settings, name
        self._densities = torch.tensor(settings.densities(len(weights)), dtype=torch.float64)

    def scan(self, number: int, pieces: Pieces, work: torch.dtype, is_last: bool) -> None:
        """Needs no pass of its own."""

    def finalize(self, products: Tensor) -> None:
        """Needs no Gram matrix."""

    def combined(self, pieces: Pieces, start: int, work: torch.dtype, output: torch.dtype) -> Tensor:
        """The sum of the thinned task vectors, added to the base."""
        assert start % BLOCK == 0  # blocks are the unit of the random choice
        result = torch.empty(len(pieces[0]), dtype=output)
        factors = (self.weights / self._densities).to(work)
        for begin, block in blocks(pieces, work, centred=True):
            position, count = start + begin, block.shape[1]
            kept = torch.stack([self._kept(model, position, count) for model in range(len(factors))])
            result[begin : begin + BLOCK] = _scaled(block, factors @ (block[:-1] * kept), self.settings)
        return result

    def _kept(self, model: int, start: int, count: int) -> Tensor:
        """Which elements of one block are kept: [count] bool."""
        key = f"{self.settings.seed}/{self.name}/{model}/{start // BLOCK}"
        generator = torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(key.encode()) >> 1)
        return torch.rand(BLOCK, generator=generator)[:count] < self._densities[model]


def _scaled(block: Tensor, merged: Tensor, settings: Merge) -> Tensor:
    """The merged weights, [n]: `scale` of the merged task vector, and the rest of that of scale 0.

    Args:
        block: [M + 1, n] task vectors, and the base.
        merged: [n] the merged task vector.
    """
    result = block[-1] + settings.factor * merged
    return result if settings.origin is None else result + (1 - settings.factor) * block[settings.origin]


def _magnitude_bits(values: Tensor) -> Tensor:
    """Integers in the order of the magnitudes of `values` as float32: [..., n] int32."""
    return values.to(torch.float32).abs().contiguous().view(torch.int32)


def _kth_largest(counts: Tensor, kth: Tensor) -> tuple[Tensor, Tensor]:
    """Per row, the bin of the k-th largest value, and its rank within that bin.

    Args:
        counts: [M, bins] int64.
        kth: [M] int64, from 1.
    """
    above = counts.flip(1).cumsum(1)  # number of values in each bin and all larger ones
    position = torch.searchsorted(above, kth[:, None]).squeeze(1).clamp(max=counts.shape[1] - 1)
    bins = counts.shape[1] - 1 - position
    below = above.gather(1, position[:, None]).squeeze(1) - counts.gather(1, bins[:, None]).squeeze(1)
    return bins, kth - below
