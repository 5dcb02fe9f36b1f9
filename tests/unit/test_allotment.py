"""Which kernel a layer gets, and what is said of it."""

from typing import Any

import numpy as np
import pytest

from fxloom.backends.hls4ml.plan import make_plan
from fxloom.choosing import choose
from fxloom.errors import TargetError
from fxloom.estimation import estimate
from fxloom.fixed_point import FixedPoint
from fxloom.matrices import KERNEL, Matrix, matrix_of
from fxloom.ops import Conv, MatMul, Requantize
from fxloom.program import Program, ProgramBuilder
from fxloom.report import Report
from fxloom.target import KernelChoice, LayerSettings, Target

INT8 = FixedPoint(8, 8)


def matrix(sparsity: float, shape: tuple[int, int] = (64, 64), kind: str = "Dense") -> Matrix:
    """8-bit weights of which exactly a share is zero."""
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 128, shape)
    order = rng.permutation(weights.size)
    weights.reshape(-1)[order[: round(sparsity * weights.size)]] = 0
    return Matrix(weights, 8, 1, kind, shape[0], inputs_of_group=shape[0])


def test_a_sparse_matrix_of_a_resource_layer_gets_the_sparse_kernel() -> None:
    given = choose(matrix(0.9), LayerSettings("resource", 8), "parallel")
    assert (given.kernel, given.strategy, given.lanes, given.reuse) == ("sparse", "resource", 52, 8)
    assert given.note == ""
    assert given.why == (
        "sparse: 410 of 4,096 weights, 52 multipliers at reuse 8 (5,824 bits with indices) instead "
        "of 512 at reuse 8 (32,768 bits)"
    )


@pytest.mark.parametrize(("sparsity", "kernel"), [(0, "dense"), (0.3, "dense"), (0.7, "sparse")])
def test_indices_are_weighed_against_the_zeros(sparsity: float, kernel: str) -> None:
    given = choose(matrix(sparsity), LayerSettings("resource", 8), "parallel")
    assert given.kernel == kernel
    assert given.why.startswith(kernel)
    assert "bits with indices) instead of 512 at reuse 8 (32,768 bits)" in given.why


def test_choosing_inputs_may_cost_more_than_the_multipliers_that_are_saved() -> None:
    """By the least that the estimate has for the sparse kernel."""
    given = choose(matrix(0.5, (256, 64)), LayerSettings("resource", 16), "parallel")
    assert given.kernel == "dense"
    assert "LUT more than the DSP blocks it saves are worth: 8,192 of 16,384 weights" in given.why
    asked = choose(matrix(0.5, (256, 64)), LayerSettings("resource", 16, "sparse"), "parallel")
    assert asked.kernel == "sparse"


@pytest.mark.parametrize("reuse", [1, 8])
def test_the_latency_strategy_has_dense_kernels_whose_zeros_cost_nothing(reuse: int) -> None:
    given = choose(matrix(0.9), LayerSettings("latency", reuse), "parallel")
    assert (given.kernel, given.strategy) == ("dense", "latency")
    assert given.why.startswith("dense: the Latency strategy drops products with zero anyway")


def test_without_reuse_weights_are_constants_and_zeros_cost_nothing() -> None:
    given = choose(matrix(0.9), LayerSettings("resource", 1), "parallel")
    assert (given.kernel, given.strategy, given.reuse) == ("dense", "resource", 1)
    assert given.why.startswith("dense: without reuse products with zero are dropped anyway")
    asked = choose(matrix(0.9), LayerSettings("resource", 1, "sparse"), "parallel")
    assert asked.kernel == "sparse"


def test_what_is_asked_for_by_name_is_done() -> None:
    dense = choose(matrix(0.9), LayerSettings("resource", 8, "dense"), "parallel")
    assert (dense.kernel, dense.why) == ("dense", "dense: asked for")
    sparse = choose(matrix(0), LayerSettings("latency", 7, "sparse"), "parallel")
    assert (sparse.kernel, sparse.lanes, sparse.reuse) == ("sparse", 586, 7)
    assert sparse.why.startswith("sparse: asked for, 4,096 of 4,096 weights, 586 multipliers")


def test_a_reuse_factor_that_is_not_needed_is_not_taken() -> None:
    given = choose(matrix(0.9), LayerSettings("resource", 400), "parallel")
    assert (given.lanes, given.reuse) == (2, 205)
    assert given.note == "reuse 400 asked for, 205 is enough for 2 multipliers"


def test_kernels_without_a_resource_strategy_share_multipliers_when_sparse() -> None:
    given = choose(matrix(0.9, kind=KERNEL), LayerSettings("resource", 64), "parallel")
    assert (given.kernel, given.lanes) == ("sparse", 7)
    full = choose(matrix(0, kind=KERNEL), LayerSettings("resource", 64), "parallel")
    assert (full.kernel, full.strategy) == ("dense", "latency")
    assert full.note == "resource asked for, latency given: there is no Resource FxloomKernel"


# -- programs ---------------------------------------------------------------


def program(sparsity: float = 0.9, side: int = 4) -> Program:
    """A convolution, a linear layer and a product of computed values."""
    b = ProgramBuilder()
    x = b.input("x", (side, side, 6), INT8)
    weights = matrix(sparsity, (54, 8)).weights.reshape(3, 3, 6, 8)
    op = Conv(padding=((1, 1), (1, 1)))
    y = b.emit(op, [x, b.constant("w", weights, INT8)], "conv")
    y = b.emit(Requantize(INT8), [y], "act")
    z = b.input("z", (32,), INT8)
    fc = b.emit(MatMul(), [z, b.constant("v", matrix(sparsity, (32, 20)).weights, INT8)], "fc")
    rows = b.input("rows", (3, 4), INT8)
    product = b.emit(MatMul(), [rows, b.input("columns", (4, 5), INT8)], "scores")
    for value in (y, fc, product):
        b.output(value, value.name)
    return b.build()


@pytest.mark.parametrize("io", ["parallel", "stream"])
@pytest.mark.parametrize("side", [4, 24])
@pytest.mark.parametrize("sparsity", [0.2, 0.9])
def test_estimate_and_project_agree(io: Any, side: int, sparsity: float) -> None:
    made = program(sparsity, side)
    target = Target(io=io, strategy="resource", reuse=6)
    report = estimate(made, target)
    layers = {each.name: each for each in report.layers}
    for layer in make_plan(made, target).layers:
        if layer.allotment is None or layer.origin == "scores":
            continue
        found, sparse = layers[layer.origin], not layer.allotment.is_dense
        # The large convolution is our kernel in parallel: its weights are constants.
        constants = (layer.origin, side, io) == ("conv", 24, "parallel")
        assert found.kernel.startswith("sparse") == sparse == (sparsity > 0.5 and not constants)
        if sparse:
            held = [w for key, w in layer.weights.items() if key != "bias"]
            assert found.stored_bits == sum(w.mantissas.size * w.kind.width for w in held)
            positions = 1 if layer.origin == "fc" else side * side
            assert found.macs == positions * layer.weights["weight"].mantissas.size
            assert found.csynth.dsp.value == layer.allotment.lanes


def test_a_large_convolution_is_the_same_kernel_in_estimate_and_project() -> None:
    """hls4ml's would take a line of C++ for every element of every window."""
    made, target = program(0.0, 24), Target(strategy="resource", reuse=6)
    conv = made.instrs[0]
    found = matrix_of(made, conv, target)
    assert found is not None
    assert found.kind == KERNEL
    layer = next(x for x in make_plan(made, target).layers if x.origin == "conv")
    assert (layer.kind, layer.allotment.strategy) == (KERNEL, "latency")  # type: ignore[union-attr]


def test_the_report_says_why_and_keeps_it() -> None:
    report = estimate(program(), Target(strategy="resource", reuse=8))
    lines = report.to_text().splitlines()
    assert (
        "fc: sparse: 64 of 640 weights, 8 multipliers at reuse 8 (832 bits with indices) "
        "instead of 80 at reuse 8 (5,120 bits)"
    ) in lines
    assert "<b>fc</b>: sparse: 64 of 640 weights" in report.to_html()
    assert Report.from_json(report.to_json()) == report
    conv = report.layers[0]
    assert "pipeline of a sparse kernel fills" in conv.latency.source
    assert conv.latency.value == (16 + 4) * 8
    assert "at least" in report.total.latency.source


def test_no_line_about_kernels_where_nothing_is_pruned() -> None:
    report = estimate(program(0.0), Target(strategy="resource", reuse=8))
    assert {layer.kernel for layer in report.layers} == {""}
    pruned = estimate(program(0.9), Target())
    assert pruned.layers[0].kernel.startswith("dense: the Latency strategy drops")


@pytest.mark.parametrize("use", [estimate, make_plan])
def test_sparse_where_nothing_is_constant_is_refused(use: Any) -> None:
    target = Target(layers={"scores": {"kernel": "sparse"}, "act": {"kernel": "sparse"}})
    with pytest.raises(TargetError) as caught:
        use(program(), target)
    assert str(caught.value).splitlines() == [
        'layers: scores: kernel = "sparse" requires a linear layer or a convolution with constant '
        "weights, got scores (matmul). Layers with weights: conv, fc",
        'layers: act: kernel = "sparse" requires a linear layer or a convolution with constant '
        "weights, got act (requantize). Layers with weights: conv, fc",
    ]
    use(program(), Target(layers={"*": {"kernel": "sparse"}, "scores": {"kernel": "dense"}}))
    use(program(), Target(kernel="sparse"))


# -- few different weights ----------------------------------------------------


def shared(values: int, sparsity: float = 0.0) -> Program:
    """A linear layer of 8-bit weights with so many different ones that are not zero."""
    rng = np.random.default_rng(1)
    centroids = rng.choice(np.arange(-128, 128)[np.arange(256) != 128], values, replace=False)
    weights = centroids[rng.integers(0, values, (64, 48))]
    weights[rng.random(weights.shape) < sparsity] = 0
    b = ProgramBuilder()
    x = b.input("x", (64,), INT8)
    b.output(b.emit(MatMul(), [x, b.constant("w", weights, INT8)], "fc"), "y")
    return b.build()


def of_values(values: int, n_in: int, n_out: int, books: int = 1, bits: int = 8) -> Program:
    """A linear layer in which each of equal parts of the outputs has so many values of its own."""
    rng = np.random.default_rng(1)
    most = 1 << (bits - 1)
    centroids = rng.choice(np.r_[-most:-2, 3:most], (books, values), replace=False)
    parts = [rng.choice(each, (n_in, n_out // books)) for each in centroids]
    b = ProgramBuilder()
    w = b.constant("w", np.concatenate(parts, 1), FixedPoint(bits, bits))
    b.output(b.emit(MatMul(), [b.input("x", (n_in,), INT8), w], "fc"), "y")
    return b.build()


@pytest.mark.parametrize(
    ("program", "strategy", "reuse", "begin"),
    [
        (of_values(16, 256, 256), "resource", 256, "codebook: 16 values in all, products first, "),
        (of_values(4, 256, 64), "resource", 64, "codebook: 4 values in all, products first, "),
        (of_values(4, 256, 256, 4), "resource", 256, "codebook: 4 values for each of 4 groups of "),
        (of_values(8, 64, 64, 8), "resource", 64, "dense: sparse would be "),
        # Constants: an output has fewer different weights than an input.
        (of_values(16, 256, 10), "latency", 1, "codebook: 16 values for an output, sums first, "),
        (of_values(16, 64, 64), "latency", 1, "dense: "),
        # Choosing among sixteen products costs more than the multipliers that are not there.
        (of_values(16, 256, 256), "resource", 32, "dense: sparse would be "),
        (of_values(200, 128, 64), "resource", 32, "dense: sparse would be "),
        (of_values(6, 64, 64, 1, 4), "resource", 32, "dense: sparse would be "),
    ],
)
def test_a_codebook_is_chosen_where_it_is_cheaper(
    program: Program, strategy: Any, reuse: int, begin: str
) -> None:
    target = Target(part="xcvu9p", strategy=strategy, reuse=reuse)
    matrix = matrix_of(program, program.instrs[0], target)
    assert matrix is not None
    given = choose(matrix, target.resolve("fc"), "parallel")
    assert given.why.startswith(begin), given.why
    layer = estimate(program, target).layers[0]
    (plan,) = (each for each in make_plan(program, target).layers if each.allotment is not None)
    assert plan.allotment == given
    if given.kernel == "codebook":
        assert layer.kernel == given.why
        assert layer.macs == given.products
        assert 2 * layer.macs <= matrix.weights.size


def test_without_reuse_both_strategies_weigh_the_same_constants() -> None:
    made = of_values(16, 256, 10)
    found = matrix_of(made, made.instrs[0], Target())
    assert found is not None
    latency, resource = (
        choose(found, LayerSettings(strategy, 1), "parallel")
        for strategy in ("latency", "resource")
    )
    assert latency.why == resource.why
    dense = estimate(made, Target(strategy="resource", kernel="dense")).layers[0]
    assert f"instead of {dense.csynth.dsp.value:,} at reuse 1 " in resource.why


def test_without_one_asking_weights_of_a_few_bits_have_no_codebook() -> None:
    """They take no DSP block; asked for, it is there."""
    made = of_values(6, 64, 64, 1, 4)
    asked = Target(strategy="resource", reuse=32, kernel="codebook")
    assert estimate(made, asked).layers[0].kernel.startswith("codebook: asked for, 6 values")


@pytest.mark.parametrize(
    ("sparsity", "word"),
    [(0.0, 4), (0.9, 4 + 6)],  # the number of one of 16 values; and of an input
)
def test_the_indexed_kernel_stores_numbers_and_a_codebook(sparsity: float, word: int) -> None:
    made = shared(16, sparsity)
    target = Target(strategy="resource", reuse=8, kernel="indexed")
    (layer,) = estimate(made, target).layers
    (plan,) = (each for each in make_plan(made, target).layers if each.allotment is not None)
    held = plan.weights["weight"]
    words = held.mantissas.size
    nonzero = layer.nonzero if sparsity else 64 * 48
    assert nonzero <= words < nonzero + 64
    assert held.kind.width == 4
    # Where all weights are stored, each lane knows the input that it begins at.
    first = 0 if sparsity else plan.weights["indices"].mantissas.size * 6
    assert first == (0 if sparsity else words // 8 * 6)
    assert layer.stored_bits == words * word + first + 16 * 8
    assert layer.kernel.startswith("indexed: asked for, ")


@pytest.mark.parametrize("kernel", ["sparse", "indexed", "huffman"])
def test_the_outputs_of_all_groups_add_up(kernel: KernelChoice) -> None:
    """The same layer with and without groups, of which the others' weights are zeros."""
    weights = np.ones((2, 2, 1, 8), np.int8)
    dense = np.zeros((2, 2, 8, 8), np.int8)
    dense[..., np.arange(8), np.arange(8)] = weights[:, :, 0]
    found = []
    for data, groups in ((weights, 8), (dense, 1)):
        b = ProgramBuilder()
        x = b.input("x", (4, 4, 8), INT8)
        b.output(b.emit(Conv(groups=groups), [x, b.constant("w", 3 * data, INT8)], "c"), "y")
        found.append(estimate(b.build(), Target(kernel=kernel, reuse=4)).layers[0])
    assert found[0].csynth.lut.value == found[1].csynth.lut.value


def test_more_values_than_a_codebook_has_are_refused_by_name() -> None:
    b = ProgramBuilder()
    x = b.input("x", (64,), INT8)
    weights = np.arange(64 * 20).reshape(64, 20)
    wide = b.constant("w", weights, FixedPoint(12, 12))
    b.output(b.emit(MatMul(), [x, wide], "fc1"), "y")
    made = b.build()
    message = (
        'fc1: kernel = "indexed" requires at most 256 different weights in a layer, got more in '
    )
    message += "one of 64 x 20"
    for target in (
        Target(kernel="indexed"),
        Target(layers={"fc*": {"kernel": "indexed"}}),
    ):
        for ask in (estimate, make_plan):
            with pytest.raises(TargetError, match=message):
                ask(made, target)
