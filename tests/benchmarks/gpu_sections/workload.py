"""What tokens cost a model, and what a time for it means."""

from typing import NamedTuple


class Workload(NamedTuple):
    """The work of one call.

    Attributes:
        tokens: Tokens of all texts, without padding.
        operations: Floating point operations of the weights for these tokens, see `models.flops_per_token`.
        product_rate: Operations per second of a large matrix product on the device.
    """

    tokens: int
    operations: int
    product_rate: float

    def figures(self, seconds: float) -> dict[str, float]:
        """Tokens per second, and the utilization of the device (MFU)."""
        mfu = self.operations / seconds / self.product_rate
        return {"tokens_per_second": self.tokens / seconds, "mfu": mfu}
