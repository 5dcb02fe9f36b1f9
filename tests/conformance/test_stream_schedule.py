"""Schedules of streamed projects: the backend's layers and channels, and what their C++ can do."""

import random
from dataclasses import replace

import numpy as np
import pytest

from fxloom import ops
from fxloom.backends.hls4ml.plan import make_plan
from fxloom.backends.simulator import reference
from fxloom.dataflow import Actor, Dataflow
from fxloom.errors import TargetError
from fxloom.estimation import estimate
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.packs import packs_of
from fxloom.program import Program, ProgramBuilder
from fxloom.schedule import simulate
from fxloom.stream_actors import actor_of, timings
from fxloom.stream_layers import stream_layers
from fxloom.stream_schedule import LEAST_DEPTH, StreamSchedule
from fxloom.target import Target
from tests.conformance.packing import draw_programs, pack
from tests.cycle_simulation import compare, cycle_by_cycle
from tests.strategies import PROGRAMS, graphs, random_inputs

STREAM = Target(io="stream", part="xcu250")
TARGETS = [
    STREAM,
    replace(STREAM, reuse=3),
    replace(STREAM, strategy="resource", reuse=4),
    replace(STREAM, kernel="sparse", reuse=2),
    replace(STREAM, kernel="codebook", reuse=4),
]
BYTE = FixedPoint(8, 4)


def convolution(
    b: ProgramBuilder, x: object, shape: tuple[int, ...], op: ops.Conv, origin: str
) -> object:
    """A convolution that is rounded to 8 bits."""
    weights = np.random.default_rng(len(origin)).integers(-7, 8, shape)
    y = b.emit(op, [x, b.constant(f"w_{origin}", weights, FixedPoint(4, 0))], origin)
    return b.emit(ops.Requantize(BYTE, Rounding.RND, Overflow.SAT), [y], origin)


def residual(size: int = 8, channels: int = 3, shown: bool = True) -> Program:
    """Two convolutions around which the input goes, then a pool. shown: the sum is an output."""
    b, same = ProgramBuilder(), ops.Conv((1, 1), ((1, 1), (1, 1)))
    kernel = (3, 3, channels, channels)
    x = convolution(b, b.input("x", (size, size, channels), BYTE), kernel, same, "stem")
    y = convolution(b, x, kernel, same, "body.0")
    y = b.emit(ops.Add(), [convolution(b, y, kernel, same, "body.1"), x], "add")
    if shown:
        b.output(y, "sum")
    b.output(b.emit(ops.Pool("max", (2, 2), (2, 2)), [y], "pool"), "y")
    return b.build()


def around(transposes: int) -> Program:
    """Transpositions, each of which holds the whole tensor, and a way around all of them."""
    b = ProgramBuilder()
    x = y = b.input("x", (4, 4, 2), BYTE)
    for number in range(transposes):
        y = b.emit(ops.Transpose((1, 0, 2)), [y], f"t{number}")
    b.output(b.emit(ops.Add(), [y, x], "add"), "y")
    return b.build()


def assert_agrees(program: Program, target: Target) -> None:
    """The core's layers and channels are those of the backend's plan."""
    plan, found = make_plan(program, target), stream_layers(program, target)
    arrays = {name: array for layer in plan.layers for name, array in layer.results}
    kinds = {"Dense": "tensor", "Conv2D": "line buffer", "DepthwiseConv2D": "line buffer"}
    for ours, layer in zip(found.layers, plan.layers, strict=True):
        assert ours.index == layer.index
        assert (ours.origin, ours.values, ours.shape) == (layer.origin, layer.values, layer.shape)
        assert ours.allotment == layer.allotment
        if layer.kind == "InputLayer":  # its stream has the name of the port
            arrays[layer.name] = ours.outputs[0]
            assert set(ours.outputs) <= found.ports
            continue
        assert ours.kind == kinds.get(layer.kind, ours.kind)
        # What nobody reads is dropped; the array that hls4ml wants all the same is never filled.
        dropped = layer.ops == ("fork",) and not layer.copies
        assert ours.outputs == (() if dropped else tuple(array for _, array in layer.results))
        assert ours.inputs == tuple(arrays[name] for name in layer.inputs)
        assert (ours.kind == "fork") == (layer.ops == ("fork",))
    assert {layer.array for layer in plan.outputs} <= found.ports


def assert_causal(program: Program, target: Target) -> None:
    """No pack is written before what it depends on was read, and all tokens come and go."""
    found = stream_layers(program, target)
    actors, ends = [], []
    for layer in found.layers:
        if layer.kind == "input":
            packs = range(packs_of(layer.shape))
            actors.append(Actor(layer.origin, len(packs), 1, 0, {}, {layer.outputs[0]: packs}))
        else:
            at_once = timings(layer).least._replace(latency=0)
            actors.append(actor_of(layer, at_once))
    read = {name for actor in actors for name in actor.reads}
    for actor in list(actors):
        for name, at in actor.writes.items():
            if name not in read:
                ends.append(name)
                actors.append(Actor(f"end {name}", len(at), 1, 0, {name: range(len(at))}))
    run = simulate(Dataflow(actors), {})
    if len(program.outputs) != 1 or len(ends) != 1:
        return
    inputs = random_inputs(program, 1, 3)
    (before,) = reference(program, inputs)
    written = run.written[ends[0]]
    ports = [layer for layer in found.layers if layer.kind == "input"]
    for layer, port, data in zip(ports, program.inputs, inputs, strict=True):
        rows, kind = data.reshape(packs_of(layer.shape), -1), port.value.type
        for place, cycle in enumerate(run.read[layer.outputs[0]].tolist()):
            kept = rows[place].copy()
            rows[place] = np.where(kept > (kind.lo + kind.hi) // 2, kind.lo, kind.hi)
            (after,) = reference(program, inputs)
            rows[place] = kept
            changed = (before != after).reshape(len(written), -1).any(1)
            assert (written[changed] >= cycle).all(), (layer.origin, place)


@pytest.mark.parametrize("name", PROGRAMS)
def test_layers_are_the_backends_and_nothing_is_written_before_it_is_known(name: str) -> None:
    count = 16 if name in ("conv", "pool", "matmul") else 6
    for number, program in enumerate(draw_programs(PROGRAMS[name](9), count, 5)):
        for target in TARGETS[number % 2 :: 2]:
            assert_agrees(program, target)
            assert_causal(program, target)


def test_layers_of_whole_programs_are_the_backends() -> None:
    for number, program in enumerate(
        [residual(), residual(5, 1, shown=False), *draw_programs(graphs(), 12, 2)]
    ):
        assert_agrees(program, TARGETS[number % len(TARGETS)])
        assert_causal(program, TARGETS[(number - 1) % len(TARGETS)])


def test_several_inputs_that_are_read_more_than_once_have_the_backends_channels() -> None:
    program = pack([residual(5, 1), around(1), around(2)])
    for target in TARGETS:
        assert_agrees(program, target)
        plan = make_plan(program, target)
        channels = {array for layer in plan.layers for _, array in layer.results}
        assert set(plan.fifos) <= channels


def of_image(op: ops.Op, kernel: int = 0) -> Program:
    """One operation on an image of 3 x 3 with two channels."""
    b = ProgramBuilder()
    args = [b.input("x", (3, 3, 2), BYTE)]
    if kernel:
        ones = np.ones((kernel, kernel, 2 // getattr(op, "groups", 1), 2), np.int8)
        args.append(b.constant("w", ones, FixedPoint(2, 2)))
    b.output(b.emit(op, args, "op"), "y")
    return b.build()


SPARSE = replace(STREAM, kernel="sparse", reuse=2)
CODEBOOK = replace(STREAM, kernel="codebook", reuse=2)
PADDED = ((1, 0), (1, 0))
LOOPS = {
    "pad": (
        *(of_image(ops.Pad(((1, 0), (0, 1), (0, 0)))), STREAM),
        *([4, 5, 6, 8, 9, 10, 12, 13, 14], list(range(16)), 16),
    ),
    "line buffer": (of_image(ops.Conv(), 2), STREAM, list(range(9)), [4, 5, 7, 8], 9),
    "line buffer, strides": (
        *(of_image(ops.Conv((2, 1)), 1), STREAM),
        *(list(range(9)), [0, 1, 2, 6, 7, 8], 9),
    ),
    # Two rows, two windows and their latency of 7; a row, two windows.
    "windows": (
        *(of_image(ops.Pool("max", (2, 2), (1, 1))), STREAM),
        *([0, 1, 2, 3, 4, 5, 15, 16, 17], [6, 7, 18, 19], 20),
    ),
    "windows, padded": (
        *(of_image(ops.Pool("max", (2, 2), (2, 2), PADDED)), STREAM),
        *([0, 1, 2, 12, 13, 14, 15, 16, 17], [3, 4, 18, 19], 20),
    ),
    "windows, a row below": (
        *(of_image(ops.Pool("max", (2, 2), (2, 2))), STREAM),
        *([0, 1, 2, 3, 4, 5, 14, 15, 16], [6], 17),
    ),
    "windows, dilated, reuse": (
        *(of_image(ops.Conv((1, 1), ((1, 1), (0, 0)), (2, 2)), 2), replace(STREAM, reuse=3)),
        *([0, 1, 2, 3, 4, 5, 14, 15, 16], [6, 17, 25], 26),
    ),
    "lane windows": (
        *(of_image(ops.Conv(), 2), SPARSE),
        # Two steps to fetch the first window, and two for each.
        *([0, 1, 2, 3, 4, 5, 19, 20, 21], [9, 11, 25, 27], 28),
    ),
    "lane windows, decoded": (
        *(of_image(ops.Conv(), 2), replace(STREAM, kernel="huffman", reuse=2)),
        *([0, 1, 2, 3, 4, 5, 19, 20, 21], [9, 11, 25, 27], 28),
    ),
    # With groups sums come first, and are multiplied during the next position.
    "lane windows, sums first": (
        *(of_image(ops.Conv(groups=2), 2), CODEBOOK),
        *([0, 1, 2, 3, 4, 5, 21, 22, 23], [11, 13, 29, 31], 32),
    ),
    "lane windows, products first": (
        *(of_image(ops.Conv(), 2), CODEBOOK),
        *([0, 1, 2, 3, 4, 5, 19, 20, 21], [9, 11, 25, 27], 28),
    ),
    "tensor": (of_image(ops.Transpose((1, 0, 2))), STREAM, list(range(9)), list(range(8, 17)), 17),
    "packs": (of_image(ops.Reshape((9, 2))), STREAM, list(range(9)), list(range(9)), 9),
}


@pytest.mark.parametrize("name", LOOPS)
def test_loops_are_those_of_the_cpp(name: str) -> None:
    program, target, reads, writes, firings = LOOPS[name]
    (layer,) = (each for each in stream_layers(program, target).layers if each.kind != "input")
    actor = actor_of(layer, timings(layer).likely._replace(latency=7))
    assert layer.kind == name.split(",")[0]
    if layer.allotment is not None and layer.allotment.form:
        assert name.endswith(f"{layer.allotment.form} first")
    assert [at.tolist() for at in actor.reads.values()] == [reads]
    assert [at.tolist() for at in actor.writes.values()] == [writes]
    assert actor.firings == firings


def test_a_sparse_product_takes_its_reuse_factor_for_every_pack() -> None:
    b = ProgramBuilder()
    w = b.constant("w", np.ones((2, 4), np.int8), FixedPoint(2, 2))
    b.output(b.emit(ops.MatMul(), [b.input("x", (3, 2), BYTE), w], "op"), "y")
    layer = stream_layers(b.build(), replace(SPARSE, reuse=4)).layers[1]
    actor = actor_of(layer, timings(layer).likely)
    assert (layer.kind, actor.firings, actor.interval) == ("lane packs", 12, 1)
    assert actor.reads["layer1_out"].tolist() == [0, 4, 8]
    assert actor.writes["layer2_out"].tolist() == [3, 7, 11]


def test_hls4mls_own_synthesis_of_a_depthwise_convolution() -> None:
    """hls4ml's baselines, test_depthwise2d in io_stream with Vitis 2024.1 and Vivado 2020.1: 32 x
    32 x 3, kernel 3 x 3: 1,028 cycles, one sample every 1,029."""
    b = ProgramBuilder()
    x, op = b.input("x", (32, 32, 3), BYTE), ops.Conv(groups=3)
    b.output(convolution(b, x, (3, 3, 1, 3), op, "conv"), "y")
    schedule = StreamSchedule(b.build(), STREAM)
    assert (schedule.latency.value, schedule.interval.value) == (1028, 1029)
    assert [layer.kind for layer in schedule.layers] == ["line buffer"]


def test_a_chain_is_as_slow_as_its_slowest_process_and_names_it() -> None:
    b = ProgramBuilder()
    x = convolution(b, b.input("x", (9, 9, 2), BYTE), (3, 3, 2, 2), ops.Conv(), "first")
    b.output(convolution(b, x, (3, 3, 2, 2), ops.Conv(), "second"), "y")
    target = replace(STREAM, layers={"second": {"reuse": 4}})
    schedule = StreamSchedule(b.build(), target)
    assert schedule.limiting.origin == "second"
    assert max(passage.busy for passage in schedule.passages) == schedule.interval.value
    assert schedule.passages[0].begin == 0
    assert schedule.passages[-1].end == schedule.latency.value
    assert schedule.interval.value == 48 * 4 + schedule.paces[1].likely.latency + 1


def test_schedules_of_programs_are_those_of_single_cycles() -> None:
    for target in TARGETS:
        schedule = StreamSchedule(residual(5, 2), target)
        minimal = {name: depth.minimal for name, depth in schedule.depths.items()}
        assert compare(schedule.likely, minimal)
        ends = cycle_by_cycle(schedule.likely, minimal, 2).finished
        assert (ends[0], ends[1] - ends[0]) == (schedule.latency.value, schedule.interval.value)


def assert_keeps_its_rate(program: Program, target: Target, samples: int = 9) -> None:
    """In the long run samples follow each other at the interval, with the depths written."""
    schedule = StreamSchedule(program, target)
    assert schedule.interval.value == max(passage.busy for passage in schedule.passages)
    written = {name: depth.written for name, depth in schedule.depths.items()}
    ends = simulate(schedule.likely, written, samples).require_end().finished
    assert ends == simulate(schedule.likely, {}, samples).finished
    assert ends[-1] - ends[-2] == schedule.interval.value


@pytest.mark.parametrize("count", [1, 4, 7])
def test_a_way_around_holds_as_many_samples_as_are_in_the_other_branch(count: int) -> None:
    assert_keeps_its_rate(around(count), STREAM)


def test_the_interval_is_kept_in_the_long_run() -> None:
    for number, program in enumerate(draw_programs(graphs(), 60, 11)):
        assert_keeps_its_rate(program, TARGETS[number % len(TARGETS)])


def test_the_way_around_a_residual_block_holds_rows_and_not_the_tensor() -> None:
    schedule = StreamSchedule(residual(16), STREAM)
    around = next(layer for layer in schedule.layers if layer.kind == "fork")
    depths = [schedule.depths[name] for name in around.outputs]
    assert min(depth.minimal for depth in depths) < 16
    skip = max(depths, key=lambda depth: depth.minimal)
    assert 2 * 16 < skip.minimal < skip.written < skip.tokens == 256
    for depth in schedule.depths.values():
        assert max(depth.minimal, LEAST_DEPTH) <= depth.written


def test_written_depths_stand_pipelines_twice_as_deep_as_any_bound() -> None:
    schedule = StreamSchedule(residual(12), STREAM)
    most = {actor.name: actor.latency for actor in schedule.most.actors}
    rng, stuck = random.Random(0), {"minimal": 0, "written": 0}
    for _ in range(12):
        actors = [
            replace(actor, latency=rng.choice([0, 2 * most[actor.name]]))
            for actor in schedule.likely.actors
        ]
        for kind in stuck:
            depths = {name: getattr(depth, kind) for name, depth in schedule.depths.items()}
            stuck[kind] += bool(simulate(Dataflow(actors), depths).stuck)
    assert stuck["minimal"] > 0
    assert stuck["written"] == 0


def test_the_estimate_has_the_cycles_of_the_schedule() -> None:
    program = residual()
    schedule = StreamSchedule(program, STREAM)
    total = estimate(program, STREAM).total
    assert (total.latency, total.interval) == (schedule.latency, schedule.interval)
    assert estimate(program, replace(STREAM, io="parallel")).total.latency != schedule.latency


def test_bounds_enclose_and_come_from_the_latencies() -> None:
    schedule = StreamSchedule(residual(), STREAM)
    for figure in (schedule.latency, schedule.interval):
        assert figure.unit == "cycles"
        assert figure.provenance == "fitted"
        assert figure.value is not None
        assert (figure.low or 0) <= figure.value <= (figure.high or 0)


@pytest.mark.parametrize(
    "target", [Target(), Target(io="stream", backend="Quartus", part="agfb014")]
)
def test_only_streams_have_a_schedule(target: Target) -> None:
    with pytest.raises(TargetError, match="requires io 'stream' and Vitis or Vivado"):
        StreamSchedule(residual(), target)
