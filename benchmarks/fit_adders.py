"""LUTs of unrolled products in yosys beside those that the adder graph counts; fit and residuals.

    python -m benchmarks.fit_adders               the table of coefficients.toml, and all residuals
    python -m benchmarks.fit_adders --only NAME   designs whose names contain NAME

Needs Debian's yosys (0.23 for the published figures) and Icarus Verilog. Every design is simulated
first. The coefficient is the median of measured / counted over the designs for fitting, and each of
them is read by the median of the others; the designs for testing are read by all of them. Among
these are layers of a trained network (fxloom.demo) and of hls4ml's jet tagger with random weights,
and products without any sharing: a matrix that has inputs of its own for every output.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

import fxloom
from benchmarks.models import mlp
from fxloom import demo, rtl
from fxloom.adder_graph import AdderCost, adder_graph
from fxloom.data import Data
from fxloom.fixed_point import IntArray
from fxloom.passes import Prune, Quantize
from fxloom.synthesis import require_tools, simulate, synthesise
from fxloom.unrolled import unrolled_products

TIMEOUT_S = 1800.0
ALLOWED = 0.03
"""Half of the interval at least: other versions of yosys may count otherwise."""


@dataclass(frozen=True)
class Design:
    """A product. fitted: whether it belongs to those for fitting."""

    name: str
    matrix: IntArray
    lo: int
    hi: int
    fitted: bool = False


@dataclass(frozen=True)
class Measured:
    """What the graph counts and what yosys found."""

    design: Design
    cost: AdderCost
    luts: int


def random_matrix(n_in: int, n_out: int, bits: int, zeros: float, seed: int) -> IntArray:
    """Uniform weights, some of them zero."""
    rng = np.random.default_rng(seed)
    top = 2 ** (bits - 1) - 1
    found = rng.integers(-top, top + 1, (n_in, n_out))
    found[rng.random(found.shape) < zeros] = 0
    return found


def apart(matrix: IntArray) -> IntArray:
    """The same sums with inputs of their own, so that nothing can be shared."""
    n_in, n_out = matrix.shape
    found = np.zeros((n_out, n_in, n_out), matrix.dtype)
    for output in range(n_out):
        found[output, :, output] = matrix[:, output]
    return found.reshape(-1, n_out)


# Inputs, outputs, bits of weights, share of zeros, interval of inputs. The last one of those for
# fitting showed that adders of up to two bits have no carry chain.
FITTED = [(4, 4, 8, 0.5, -128, 127), (8, 8, 8, 0.0, 0, 255), (16, 8, 6, 0.3, -8, 7),
          (8, 16, 4, 0.2, 0, 15), (12, 12, 8, 0.8, -512, 511), (24, 6, 3, 0.0, 0, 63),
          (6, 20, 10, 0.4, -32, 31), (16, 16, 2, 0.3, -4, 3), (32, 16, 2, 0.5, 0, 1)]  # fmt: skip
TESTED = [(10, 10, 8, 0.5, -128, 127), (5, 30, 7, 0.2, 0, 127), (30, 5, 8, 0.6, 0, 255),
          (16, 16, 5, 0.5, -16, 15), (9, 12, 12, 0.5, 0, 1023), (20, 20, 8, 0.9, -2048, 2047),
          (8, 8, 16, 0.5, -128, 127), (14, 14, 6, 0.0, -5, 90), (12, 10, 3, 0.3, 0, 1),
          (20, 8, 2, 0.3, -1, 1), (16, 6, 8, 0.2, 0, 3)]  # fmt: skip


def designs() -> Iterator[Design]:
    """Those for fitting, then those for testing."""
    for seed, (n_in, n_out, bits, zeros, lo, hi) in enumerate(FITTED + TESTED):
        name = f"random {n_in}x{n_out}, {bits} bits, {100 * zeros:.0f}% zeros, [{lo}, {hi}]"
        matrix = random_matrix(n_in, n_out, bits, zeros, seed)
        yield Design(name, matrix, lo, hi, seed < len(FITTED))
    for seed, (n_in, n_out, bits, lo, hi) in enumerate([(8, 8, 8, 0, 255), (6, 10, 6, -32, 31)]):
        matrix = apart(random_matrix(n_in, n_out, bits, 0.3, 100 + seed))
        yield Design(f"random {n_in}x{n_out}, {bits} bits, nothing shared", matrix, lo, hi)
    yield from layers()


def layers() -> Iterator[Design]:
    """Layers of networks."""
    data = demo.digits()
    graph = fxloom.capture(demo.train(demo.NETWORKS[0], data), data.example(2))
    few, many = Quantize(weights=4, activations=4), Quantize(weights=8, activations=8)
    recipes = {
        "4 bits": (fxloom.Recipe([few]), 1e9),
        "8 bits": (fxloom.Recipe([many]), 500),
        "8 bits, 85% pruned": (fxloom.Recipe([Prune(sparsity=0.85), many]), 1e9),
    }
    for kind, (recipe, most) in recipes.items():
        program = fxloom.lower(recipe.run(graph, data).graph)
        for product in unrolled_products(program):
            if np.count_nonzero(product.matrix) <= min(most, 2500):
                name = f"trained digits MLP, {product.layer}, {kind}"
                yield Design(name, product.matrix, product.lo, product.hi)
    torch.manual_seed(0)
    samples = torch.randn(64, 16)
    jet = fxloom.capture(mlp().eval(), samples[:2])
    program = fxloom.lower(
        fxloom.Recipe([Quantize(weights=6)]).run(jet, Data.of(samples.numpy())).graph
    )
    for product in unrolled_products(program):
        if product.matrix.size <= 1024:
            name = f"jet MLP, {product.layer}, 6 bits, random weights"
            yield Design(name, product.matrix, product.lo, product.hi)


def measure(design: Design) -> Measured:
    """Simulate and synthesise one design."""
    graph = adder_graph(design.matrix, design.lo, design.hi)
    rng = np.random.default_rng(0)
    x = rng.integers(design.lo, design.hi, (32, len(design.matrix)), endpoint=True)
    expected = x @ design.matrix.astype(np.int64)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rtl.write(folder, graph, design.name, x, expected)
        difference = simulate(folder, graph, expected.tolist(), TIMEOUT_S)
        if difference is not None:
            raise SystemExit(f"{design.name}: {difference}")
        return Measured(design, graph.cost, synthesise(folder, TIMEOUT_S))


def factor(found: list[Measured]) -> float:
    """LUTs for one that is counted."""
    return median(each.luts / each.cost.luts for each in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of the names")
    only = parser.parse_args().only
    require_tools()
    found = []
    print("| design | set | adders | full-adder bits | counted | yosys | error |")
    print("|---|---|---|---|---|---|---|")
    for design in designs():
        if only in design.name:
            each = measure(design)
            found.append(each)
            cost, kind = each.cost, "fit" if design.fitted else "test"
            error = 100 * (cost.luts / each.luts - 1)
            print(
                f"| {design.name} | {kind} | {cost.adders:,} | {cost.fa_bits:,} | {cost.luts:,} | "
                f"{each.luts:,} | {error:+.2f}% |",
                flush=True,
            )
    fitted = [each for each in found if each.design.fitted]
    if len(fitted) < 2:
        return
    value, errors = factor(fitted), []
    for each in found:
        used = factor([other for other in fitted if other is not each])
        errors.append(used * each.cost.luts / each.luts - 1)
    largest = max(map(abs, errors))
    plain = [abs((each.cost.fa_bits - each.cost.adders) / each.luts - 1) for each in found]
    wide = max(largest, ALLOWED)
    print(f"\n[adder_graph]\nterms = {{ luts = {value:.4g} }}")
    print(f"low = {1 / (1 + wide):.3f}\nhigh = {1 / (1 - wide):.3f}")
    print(f"rows = {len(found)}\ndatasets = {len(found)}")
    print(f"median_error = {median(map(abs, errors)):.3f}\ncovered = 1.0")
    print(f"largest error left out {100 * largest:.2f}%")
    print(f"fa_bits - adders: median {100 * median(plain):.1f}%, most {100 * max(plain):.1f}%")


if __name__ == "__main__":
    main()
