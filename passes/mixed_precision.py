"""Quantization with widths of their own for layers or output channels, under a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import fx

from fxloom.errors import RecipeError
from fxloom.passes.quantize import Quantize
from fxloom.passes.width_search import WidthSearch
from fxloom.recipe import PassResult
from fxloom.settings import build, typed_keys

if TYPE_CHECKING:
    from fxloom.data import Data

BUDGETS = ("weight_bits", "bit_operations", "error", "points", "dsp")

Method = Literal["sensitivity", "hessian", "learned"]


@typed_keys(RecipeError)
@dataclass(frozen=True)
class MixedPrecision:
    """Quantize with as many bits for each layer's weights as they are worth.

    Exactly one budget is given. weight_bits: bits of a weight in the mean over all of them.
    bit_operations: over all multiplications, the bits of the weight times those of what it is
    multiplied with (close to LUT + 55 DSP: Sun et al. 2024, arXiv 2405.00645). error:
    how far outputs may be from the float model's on the calibration samples, in root mean squares
    relative to their deviation. points: percentage points of accuracy that may be lost on them
    (with labels y_train; without, share of samples whose largest output may be another). These two
    take the fewest bits that keep to them. dsp: DSP blocks, estimated on `target` (a part, or a
    TOML file), which takes the most bits that fit. method: what a width is taken to cost;
    sensitivity: how far outputs move, by the curvature of that distance and checked by injecting
    the errors; hessian: the trace of the Hessian times the squared error of the weights (HAWQ);
    learned: widths in real numbers follow the slope of that distance and of what bits cost.
    granularity: whether channels or whole layers have a width. widths: those to choose from; 0
    gives a channel up (not by hessian). quantize: keys of the quantize pass for everything
    else; what its `layers` say of weights stays.
    What was found is a quantize pass that does the same again; `compile` writes it to found.toml.
    """

    name: ClassVar[str] = "mixed_precision"
    needs_data: ClassVar[bool] = True

    weight_bits: float | None = None
    bit_operations: int | None = None
    error: float | None = None
    points: float | None = None
    dsp: int | None = None
    target: str | None = None
    method: Method = "sensitivity"
    granularity: Literal["channel", "layer"] = "channel"
    widths: tuple[int, ...] = (0, 2, 3, 4, 5, 6, 7, 8)
    quantize: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [key for key in BUDGETS if getattr(self, key) is not None]
        if len(given) != 1:
            raise RecipeError(
                f"required one budget of {', '.join(BUDGETS)}, got {', '.join(given) or 'none'}"
            )
        problems = []
        budget = getattr(self, given[0])
        may_be_zero = given[0] in ("points", "dsp")
        if not 0 <= budget < float("inf") or (budget == 0 and not may_be_zero):
            least = "of at least 0" if may_be_zero else "above 0"
            problems.append(f"{given[0]}: required a number {least}, got {budget}")
        if self.target is not None and self.dsp is None:
            problems.append("target: is for the budget dsp, which is not given")
        if not self.widths or min(self.widths) < 0 or not 1 <= max(self.widths) <= 32:
            problems.append(f"widths: required some of 0 to 32 bits, got {list(self.widths)}")
        problems += [f"quantize.{line}" for line in build(Quantize, self.quantize)[1]]
        if problems:
            raise RecipeError("\n".join(problems))

    def __call__(self, graph: fx.GraphModule, data: Data | None = None) -> PassResult:
        if data is None:
            raise RecipeError("mixed_precision: required data to calibrate with, got none")
        budget = next(key for key in BUDGETS if getattr(self, key) is not None)
        search = WidthSearch(
            graph,
            data,
            Quantize(**self.quantize),
            self.method,
            self.granularity == "layer",
            self.widths,
            self.target,
            budget,
        )
        return search.result(float(getattr(self, budget)))
