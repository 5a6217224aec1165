"""Merge methods that look at single elements, so that no Gram matrix decides them: TIES and DARE.

They work on the differences to a base model, block by block as `boom_ray.merge.gram` does, and on whole
tensors only through counts: the threshold of TIES is found exactly, from two histograms over the bits of
the magnitudes, whatever the tensor's size and however it is cut.
"""

from typing import Protocol

import torch
import xxhash
from torch import Tensor

from boom_ray.merge.gram import BLOCK, Pieces, blocks, combine
from boom_ray.merge.methods import METHODS, Options

FINE_BITS = 15  # of the 31 bits of a float32 magnitude; the other 16 are counted first


class Combination(Protocol):
    """How one tensor of M models becomes one; made anew for every tensor."""

    #: Passes over the tensor before `combined`; its Gram matrix comes with the first.
    num_scans: int

    def scan(self, number: int, pieces: Pieces, work: torch.dtype, is_last: bool) -> None:
        """Look at pieces; `is_last` in this pass."""

    def settle(self, products: Tensor) -> None:
        """Take the Gram matrix, [M, M] float64, after the last pass."""

    def combined(self, pieces: Pieces, start: int, work: torch.dtype, output: torch.dtype) -> Tensor:
        """The merged piece, [n] of `output`, that begins at element `start` of the tensor."""


def combination(method: str, weights: Tensor, options: Options, name: str) -> Combination:
    """The combination of a method for one tensor.

    Args:
        method: A name of `METHODS`.
        weights: [M] float64.
        name: Of the tensor, which random choices depend on.
    """
    kinds: dict[str, type[Ties] | type[DareLinear]] = {"ties": Ties, "dare_linear": DareLinear}
    return kinds[method](weights, options, name) if method in kinds else ByGram(method, weights, options)


def num_scans(method: str) -> int:
    """Passes over a tensor before it can be combined."""
    return Ties.num_scans if method == "ties" else ByGram.num_scans


class ByGram:
    """Any method that is a function of the Gram matrix."""

    num_scans = 1

    def __init__(self, method: str, weights: Tensor, options: Options) -> None:
        self.method, self.weights, self.options = METHODS[method], weights, options
        self.coefficients = weights

    def scan(self, number: int, pieces: Pieces, work: torch.dtype, is_last: bool) -> None:
        """Nothing beside the Gram matrix is needed."""

    def settle(self, products: Tensor) -> None:
        """Find the coefficients; raises what the method raises."""
        assert self.method.coefficients is not None
        found = self.method.coefficients(products.numpy(), self.weights.numpy(), self.options)
        self.coefficients = torch.from_numpy(found)

    def combined(self, pieces: Pieces, start: int, work: torch.dtype, output: torch.dtype) -> Tensor:
        """See `boom_ray.merge.gram.combine`."""
        return combine(pieces, self.coefficients, work, output)


class Ties:
    """TIES (arXiv 2306.01708): keep the largest differences, elect a sign per element, average who agrees.

    Of each difference the `density` largest magnitudes are kept, and all that equal the smallest of those.
    The sign of an element is that of the weighted sum; the result is the weighted mean of the differences
    that have it, times `scale`.
    """

    num_scans = 2

    def __init__(self, weights: Tensor, options: Options, name: str) -> None:
        self.weights, self.options = weights, options
        self.counts = torch.zeros(len(weights), 1 << (31 - FINE_BITS), dtype=torch.int64)
        self.fine = torch.zeros(len(weights), 1 << FINE_BITS, dtype=torch.int64)
        self.bins = self.left = self.thresholds = torch.zeros(len(weights), dtype=torch.int64)

    def scan(self, number: int, pieces: Pieces, work: torch.dtype, is_last: bool) -> None:
        """Count magnitudes by their upper bits, then, where the limit lies, by their lower bits."""
        counts = (self.counts, self.fine)[number]
        for _, block in blocks(pieces, work, centred=True):
            for model, bits in enumerate(_magnitude_bits(block[:-1])):
                upper = bits >> FINE_BITS
                chosen = upper if number == 0 else bits[upper == self.bins[model]] & ((1 << FINE_BITS) - 1)
                counts[model] += torch.bincount(chosen, minlength=counts.shape[1])
        if is_last:
            self._narrow(number)

    def _narrow(self, number: int) -> None:
        if number == 0:
            total = self.counts.sum(dim=1)
            densities = torch.tensor(self.options.densities(len(total)), dtype=torch.float64)
            keep = (densities * total).long().clamp(min=1)
            self.bins, self.left = _kth_largest(self.counts, keep)
        else:
            bins, _ = _kth_largest(self.fine, self.left)
            self.thresholds = (self.bins << FINE_BITS) + bins

    def settle(self, products: Tensor) -> None:
        """Nothing is taken from the Gram matrix."""

    def combined(self, pieces: Pieces, start: int, work: torch.dtype, output: torch.dtype) -> Tensor:
        """The elected mean of the kept differences, on top of the base."""
        result = torch.empty(len(pieces[0]), dtype=output)
        weights = self.weights.to(work)[:, None]
        for begin, block in blocks(pieces, work, centred=True):
            kept = _magnitude_bits(block[:-1]) >= self.thresholds[:, None]
            deltas = torch.where(kept, block[:-1] * weights, 0.0)
            sign = torch.where(deltas.sum(dim=0) >= 0, 1.0, -1.0).to(work)
            agrees = deltas.sign() == sign
            mean = (deltas * agrees).sum(dim=0)
            if self.options.normalize is not False:
                divisor = (agrees * weights).sum(dim=0)
                mean /= torch.where(divisor == 0, 1.0, divisor)
            result[begin : begin + BLOCK] = block[-1] + self.options.scale * mean
        return result


class DareLinear:
    """DARE (arXiv 2311.03099): drop elements of the differences at random, scale up the rest, add linearly.

    The choice depends on seed, tensor, model and position alone: it is the same however the work is cut.
    """

    num_scans = 1

    def __init__(self, weights: Tensor, options: Options, name: str) -> None:
        self.weights, self.options, self.name = weights, options, name
        self._densities = torch.tensor(options.densities(len(weights)), dtype=torch.float64)

    def scan(self, number: int, pieces: Pieces, work: torch.dtype, is_last: bool) -> None:
        """Nothing needs to be known before."""

    def settle(self, products: Tensor) -> None:
        """Nothing is taken from the Gram matrix."""

    def combined(self, pieces: Pieces, start: int, work: torch.dtype, output: torch.dtype) -> Tensor:
        """The thinned sum of the differences, on top of the base."""
        assert start % BLOCK == 0
        result = torch.empty(len(pieces[0]), dtype=output)
        factors = (self.options.scale * self.weights / self._densities).to(work)
        for begin, block in blocks(pieces, work, centred=True):
            at, count = start + begin, block.shape[1]
            kept = torch.stack([self._kept(model, at, count) for model in range(len(factors))])
            result[begin : begin + BLOCK] = block[-1] + factors @ (block[:-1] * kept)
        return result

    def _kept(self, model: int, start: int, count: int) -> Tensor:
        key = f"{self.options.seed}/{self.name}/{model}/{start // BLOCK}"
        generator = torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(key.encode()) >> 1)
        return torch.rand(BLOCK, generator=generator)[:count] < self._densities[model]


def _magnitude_bits(values: Tensor) -> Tensor:
    """Integers in the order of the magnitudes of `values`, as float32: [..., n] int32."""
    return values.to(torch.float32).abs().contiguous().view(torch.int32)


def _kth_largest(counts: Tensor, kth: Tensor) -> tuple[Tensor, Tensor]:
    """Per row, the bin in which the k-th largest lies, and its rank within that bin.

    Args:
        counts: [M, bins] int64.
        kth: [M] int64, from 1.
    """
    above = counts.flip(1).cumsum(1)  # how many lie in the bins from here upward
    position = torch.searchsorted(above, kth[:, None]).squeeze(1).clamp(max=counts.shape[1] - 1)
    bins = counts.shape[1] - 1 - position
    below = above.gather(1, position[:, None]).squeeze(1) - counts.gather(1, bins[:, None]).squeeze(1)
    return bins, kth - below
