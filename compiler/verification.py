"""Estimates of unrolled products beside what logic synthesis makes of their Verilog.

Every product with a constant matrix is written as adders, simulated against the Program's own
operation, synthesised without DSP blocks and compared with the estimate: LUTs of one position, no
registers, whatever strategy the project has. Files exist in a temporary folder only.
"""

import fnmatch
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fxloom import rtl, synthesis
from fxloom.adder_graph import AdderGraph, adder_graph
from fxloom.choosing import choose
from fxloom.coefficients import fit
from fxloom.errors import FxloomError, ToolError, VerifyError
from fxloom.matrices import matrix_of
from fxloom.program import Program
from fxloom.report import Figure
from fxloom.settings import did_you_mean
from fxloom.synthesis import Difference
from fxloom.target import Target
from fxloom.unrolled import UnrolledProduct, unrolled_products

FORMAT, VERSION = "fxloom-estimate-check", 1

MOST_ADDERS = 5000
"""Up to here yosys takes minutes (3,876 adders: one minute of CPU time)."""

SAMPLES = 64
TIMEOUT_S = 1800.0

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ProductCheck:
    """One product. luts: yosys's, None where it was not synthesised; difference: the first integer
    of the simulation that is not the Program's; skipped: why nothing was done; note: what else is
    to be known."""

    layer: str
    weight: str
    inputs: int
    outputs: int
    positions: int
    adders: int
    depth: int
    estimate: Figure | None
    samples: int = 0
    luts: int | None = None
    difference: Difference | None = None
    skipped: str = ""
    note: str = ""

    @property
    def is_within(self) -> bool:
        """Whether what was synthesised lies in the interval of its estimate."""
        if self.luts is None or self.estimate is None:
            return True
        low, high = self.estimate.low, self.estimate.high
        return low is not None and high is not None and low <= self.luts <= high

    @property
    def error(self) -> float | None:
        """Estimate against yosys, in percent of the latter."""
        if self.luts is None or self.estimate is None or self.estimate.value is None:
            return None
        return 100 * (self.estimate.value - self.luts) / max(self.luts, 1)

    @property
    def verdict(self) -> str:
        """In one word or two."""
        if self.skipped:
            return "skipped"
        if self.difference is not None:
            return "differs"
        return "agrees" if self.is_within else "outside"


@dataclass(frozen=True, slots=True)
class EstimateCheck:
    """All products of a program. part: which its LUTs are compared with; part_luts: it has."""

    part: str
    part_luts: int
    products: tuple[ProductCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether every integer is exact and every LUT count within its interval."""
        return all(each.verdict in ("agrees", "skipped") for each in self.products)

    def title(self, product: ProductCheck) -> str:
        """The layer, with the constant where the layer has several products."""
        alone = sum(each.layer == product.layer for each in self.products) == 1
        return product.layer if alone else f"{product.layer} ({product.weight})"

    def remarks(self) -> Iterator[str]:
        """What the table has no room for, a line each."""
        for each in self.products:
            if each.difference is not None:
                yield f"first difference in {self.title(each)}: {each.difference}"
            if each.skipped:
                yield f"{self.title(each)}: skipped: {each.skipped}"
            if each.note:
                yield f"{self.title(each)}: {each.note}"
        done = [each for each in self.products if each.luts is not None]
        luts = sum(each.luts or 0 for each in done)
        share = 100 * luts / self.part_luts
        yield f"{len(done)} products synthesised: {luts:,} LUT, {share:.1f}% of {self.part}"

    def to_json(self) -> str:
        """The same as the table, and where the estimates come from."""
        products = [
            asdict(each) | {"verdict": each.verdict, "error_percent": each.error}
            for each in self.products
        ]
        content: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "part": self.part,
            "part_luts": self.part_luts,
            "passed": self.passed,
            "products": products,
        }
        return json.dumps(content, indent=2) + "\n"


def verify_estimate(
    program: Program,
    target: Target | None = None,
    layers: Sequence[str] = (),
    most_adders: int = MOST_ADDERS,
    samples: int = SAMPLES,
    timeout_s: float = TIMEOUT_S,
    progress: Progress | None = None,
) -> EstimateCheck:
    """Simulate and synthesise products with constant matrices, one after the other.

    layers: patterns of their names, () for all. most_adders: larger products are skipped.
    samples: random inputs of each, besides extreme ones. timeout_s: for each run of a tool. Raises
    ToolError where one is missing or fails, FxloomError where nothing is there to be checked.
    """
    tell, goal = progress or (lambda text: None), target or Target()
    synthesis.require_tools()
    chosen, kernels = _chosen(unrolled_products(program), layers), _kernels(program, goal)
    found = []
    for product in chosen:
        settings = goal.resolve(product.layer)
        note = ""
        if settings.strategy != "latency" or settings.reuse != 1:
            note = (
                f"the target has strategy {settings.strategy} and reuse {settings.reuse} here, so "
                "the project does not unroll this product"
            )
        elif kernels[product.layer] != "dense":
            note = (
                f"the target has the {kernels[product.layer]} kernel here, so the project does not "
                "unroll this product"
            )
        found.append(_check(product, note, most_adders, samples, timeout_s, tell))
    if all(each.skipped for each in found):
        reasons = "; ".join(f"{each.layer}: {each.skipped}" for each in found)
        raise FxloomError(f"nothing left to check: {reasons}")
    return EstimateCheck(goal.device.name, goal.device.lut, tuple(found))


def _kernels(program: Program, target: Target) -> dict[str, str]:
    """What computes the products with constant matrices, by their layers."""
    found = {}
    for instr in program.instrs:
        matrix = matrix_of(program, instr, target)
        if matrix is not None:
            given = choose(matrix, target.resolve(instr.origin), target.io)
            found[instr.origin] = given.kernel
    return found


def _chosen(products: list[UnrolledProduct], layers: Sequence[str]) -> list[UnrolledProduct]:
    names = list(dict.fromkeys(product.layer for product in products))
    if not names:
        raise FxloomError("required a product with a constant matrix, the program has none")
    for pattern in layers:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            near = did_you_mean(pattern, names)
            raise FxloomError(
                f"--layer {pattern}: no layer with a constant matrix is named so.{near} "
                f"Layers: {', '.join(names)}"
            )
    return [
        product
        for product in products
        if not layers or any(fnmatch.fnmatchcase(product.layer, each) for each in layers)
    ]


def _check(
    product: UnrolledProduct,
    note: str,
    most_adders: int,
    samples: int,
    timeout_s: float,
    tell: Progress,
) -> ProductCheck:
    inputs, outputs = product.shape
    checked = ProductCheck(
        product.layer, product.weight, inputs, outputs, product.positions, 0, 0, None, note=note
    )
    least = product.least_adders
    if least > most_adders:
        reason = _too_large(f"at least {least:,}", most_adders)
        return replace(checked, adders=least, skipped=reason)
    try:
        graph = adder_graph(product.matrix, product.lo, product.hi)
    except VerifyError as fault:
        return replace(checked, skipped=str(fault))
    cost = graph.cost
    checked = replace(
        checked,
        adders=cost.adders,
        depth=cost.depth,
        estimate=fit("adder_graph").figure({"luts": cost.luts}, "LUT"),
    )
    if cost.adders > most_adders:
        return replace(checked, skipped=_too_large(f"{cost.adders:,}", most_adders))
    try:
        return _run(product, graph, checked, samples, timeout_s, tell)
    except ToolError as fault:
        raise ToolError(f"{product.layer}: {fault}") from None


def _too_large(adders: str, most: int) -> str:
    return f"{adders} adders, more than {most:,} (--most-adders allows more)"


def _run(
    product: UnrolledProduct,
    graph: AdderGraph,
    checked: ProductCheck,
    samples: int,
    timeout_s: float,
    tell: Progress,
) -> ProductCheck:
    x = product.inputs(samples)
    expected = product.evaluate(x)
    with tempfile.TemporaryDirectory(prefix="fxloom-rtl-") as temporary:
        folder = Path(temporary)
        rtl.write(folder, graph, f"{product.layer}: {product.weight}", x, expected)
        size = f"{product.layer} ({checked.adders:,} adders)"
        tell(f"simulate {size}")
        difference = synthesis.simulate(folder, graph, expected.tolist(), timeout_s)
        checked = replace(checked, samples=len(x), difference=difference)
        if difference is not None:
            return checked
        tell(f"synthesise {size}")
        return replace(checked, luts=synthesis.synthesise(folder, timeout_s))
