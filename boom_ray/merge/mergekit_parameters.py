"""Parameters of mergekit's merge methods: those we have, with the values that mean what we compute."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

_FLAG = TypeAdapter(bool)
# The default `tol` of mergekit's `karcher`: up to it, stopping early changes no digit that is kept.
TOLERANCE = 1e-5


def _scalar(value: Any) -> Any:
    """The one value of a gradient or filter that has only one: `[0.5]`, `{value: 0.5}`, `[{value: 0.5}]`."""
    if isinstance(value, list) and len(value) == 1:
        return _scalar(value[0])
    if isinstance(value, dict) and value.get("filter") in (None, "*") and value.keys() <= {"filter", "value"}:
        return _scalar(value.get("value"))
    return value


def _flag(value: Any) -> Any:
    """True and false as mergekit's files have them: also 1.0, 0.0 and `"yes"`."""
    try:
        return _FLAG.validate_python(_scalar(value))
    except ValidationError:
        return value


Flag = Annotated[bool, BeforeValidator(_flag)]
Yes = Annotated[Literal[True], BeforeValidator(_flag)]
No = Annotated[Literal[False], BeforeValidator(_flag)]
# YAML reads 1e-5 as text, because it has no dot; mergekit takes it as a number.
Number = Annotated[float, BeforeValidator(_scalar), Field(strict=False, allow_inf_nan=False)]


class Strict(BaseModel):
    """A part of a file in which unknown keys and other types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Parameters(Strict):
    """Parameters of any method.

    Attributes:
        int8_mask: The type of a mask inside of mergekit, which changes no value.
    """

    int8_mask: Flag = False


class LinearParameters(Parameters):
    """Parameters of `linear`."""

    weight: Number | None = None
    normalize: Flag = True


class MultiSlerpParameters(Parameters):
    """Parameters of `multislerp`."""

    weight: Number | None = None
    normalize: Flag = Field(True, alias="normalize_weights")


class NuSlerpParameters(Parameters):
    """Parameters of `nuslerp`, which always normalizes; rows of a tensor have no angles of their own here."""

    weight: Number | None = None
    nuslerp_flatten: Yes = True
    nuslerp_row_wise: No = False


class KarcherParameters(Parameters):
    """Parameters of `karcher`; we always make `max_iter` steps, so `tol` must not stop before."""

    max_iter: Annotated[int, BeforeValidator(_scalar), Field(strict=False, ge=1)] = 10
    tol: Annotated[Number, Field(gt=0, le=TOLERANCE)] = TOLERANCE


class SlerpParameters(Parameters):
    """Parameters of `slerp`: 0 is the base model, 1 the other one."""

    t: Number | None = None


class ModelStockParameters(Parameters):
    """Parameters of `model_stock`."""

    filter_wise: No = False


class TaskArithmeticParameters(Parameters):
    """Parameters of `task_arithmetic`; mergekit declares `density` and `rescale` too, and ignores them."""

    weight: Number | None = None
    normalize: Flag = False
    scale: Number = Field(1.0, alias="lambda")
    density: Number | None = None
    rescale: Flag = False


class SparseParameters(Parameters):
    """Parameters of methods that keep a part of each task vector."""

    weight: Number | None = None
    scale: Number = Field(1.0, alias="lambda")
    density: Annotated[Number, Field(gt=0, le=1)] = 1.0


class DareParameters(SparseParameters):
    """Parameters of `dare_linear`."""

    normalize: Flag = False
    rescale: Yes = True


class TiesParameters(SparseParameters):
    """Parameters of `ties`."""

    normalize: Flag = True
    rescale: No = False


PARAMETERS: dict[str, type[Parameters]] = {
    "linear": LinearParameters,
    "multislerp": MultiSlerpParameters,
    "karcher": KarcherParameters,
    "slerp": SlerpParameters,
    "nuslerp": NuSlerpParameters,
    "task_arithmetic": TaskArithmeticParameters,
    "model_stock": ModelStockParameters,
    "ties": TiesParameters,
    "dare_linear": DareParameters,
}
