"""Token-level schedules: rules, deadlocks and depths; random graphs against single cycles."""

import numpy as np
import pytest

from fxloom import fifo_depths
from fxloom.dataflow import Actor, Dataflow
from fxloom.errors import FxloomError
from fxloom.fifo_depths import minimal_depths
from fxloom.schedule import Wait, simulate
from tests.cycle_simulation import check, compare, cycle_by_cycle, random_graph

EIGHT = range(8)


def chain(interval: int = 1, latency: int = 0) -> Dataflow:
    """Eight tokens through one channel."""
    return Dataflow(
        [
            Actor("sink", 8, interval, latency, {"c": EIGHT}),
            Actor("source", 8, 1, 0, {}, {"c": EIGHT}),
        ]
    )


def residual(latency: int = 3) -> Dataflow:
    """A fork, a branch that takes a while, one that takes none, and a join."""
    return Dataflow(
        [
            Actor("fork", 8, 1, 1, {}, {"slow": EIGHT, "skip": EIGHT}),
            Actor("body", 8, 1, latency, {"slow": EIGHT}, {"back": EIGHT}),
            Actor("join", 8, 1, 0, {"back": EIGHT, "skip": EIGHT}),
        ]
    )


@pytest.mark.parametrize("seed", range(60))
def test_random_networks_run_as_cycle_by_cycle_and_no_depth_can_be_less(seed: int) -> None:
    check(seed)


def test_a_token_is_read_in_the_cycle_after_it_was_written() -> None:
    run = simulate(chain(), {})
    assert run.written["c"].tolist() == list(range(8))
    assert run.read["c"].tolist() == list(range(1, 9))
    assert run.finished == [8]


def test_room_is_there_in_the_cycle_after_a_read_so_depth_one_halves_the_rate() -> None:
    run = simulate(chain(), {"c": 1})
    assert run.written["c"].tolist() == list(range(0, 16, 2))
    assert run.read["c"].tolist() == list(range(1, 16, 2))
    assert simulate(chain(), {"c": 2}).finished == [8]
    assert minimal_depths(chain()) == {"c": 2}


def test_a_slow_reader_needs_no_more_than_one() -> None:
    assert minimal_depths(chain(interval=4), samples=1) == {"c": 1}
    assert minimal_depths(chain(interval=4), samples=2) == {"c": 2}  # a sample begins at once
    assert simulate(chain(interval=4), {}).most_held("c") == 6


def test_an_actor_begins_a_sample_after_the_last_step_of_the_one_before() -> None:
    run = simulate(chain(latency=3), {}, samples=3)
    assert run.finished == [11, 22, 33]  # 8 firings and 3 cycles of latency: 11 steps each
    assert run.read["c"].reshape(3, 8)[:, 0].tolist() == [1, 12, 23]


def test_a_pipeline_that_waits_for_input_keeps_its_results_back() -> None:
    """As a stalled pipeline does: result number k leaves while token k + latency comes in."""
    slow = Actor("slow", 8, 4, 0, {}, {"a": EIGHT})
    deep = Actor("deep", 8, 1, 2, {"a": EIGHT}, {"b": EIGHT})
    run = simulate(Dataflow([slow, deep, Actor("end", 8, 1, 0, {"b": EIGHT})]), {})
    assert run.written["b"].tolist()[:6] == run.read["a"].tolist()[2:]


def test_a_residual_path_holds_what_its_other_branch_takes_to_begin() -> None:
    depths = minimal_depths(residual())
    assert depths == {"slow": 2, "back": 2, "skip": 6}
    assert simulate(residual(), {"skip": 4}).finished > [13]
    stuck = simulate(residual(), {"skip": 3}).stuck
    assert stuck == {
        "fork": Wait("skip", "full"),
        "body": Wait("slow", "empty"),
        "join": Wait("back", "empty"),
    }


def test_a_deadlock_names_actors_and_channels() -> None:
    run = simulate(residual(), {"skip": 1, "slow": 2, "back": 2})
    message = "fork waits for room in skip; body waits for a token of slow; join waits for a token"
    with pytest.raises(FxloomError, match=message):
        run.require_end()
    assert simulate(residual(), {}).require_end().finished == [13]


def test_following_tokens_one_by_one_gives_the_same_depths(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [minimal_depths(random_graph(seed)) for seed in range(12)]
    monkeypatch.setattr(fifo_depths, "EFFORT", 0)
    assert [minimal_depths(random_graph(seed)) for seed in range(12)] == expected


def test_what_can_wait_is_not_hurried() -> None:
    """A branch that nobody waits for may take all the time of the other one."""
    sixty = range(60)
    graph = Dataflow(
        [
            Actor("source", 60, 1, 0, {}, {"long": sixty, "short": sixty}),
            Actor("long", 60, 9, 0, {"long": sixty}),
            Actor("short", 60, 1, 0, {"short": sixty}),
        ]
    )
    assert minimal_depths(graph, samples=1) == {"long": 1, "short": 1}
    assert compare(graph, {"long": 1, "short": 1})
    assert cycle_by_cycle(graph, {"long": 1, "short": 1}, 1).finished == [532]


def test_actors_that_nothing_connects_run_side_by_side() -> None:
    graph = Dataflow([*chain().actors, Actor("alone", 5, 4, 3)])
    assert simulate(graph, {"c": 2}, 2).finished == simulate(graph, {}, 2).finished == [19, 39]
    assert compare(graph, {"c": 1})


@pytest.mark.parametrize(
    ("actors", "message"),
    [
        ([("a", {}, {"c": [0]}), ("a", {"c": [0]}, {})], "two actors are named a"),
        ([("a", {}, {"c": [0]})], "channel c: required one writer and one reader, got 1 and 0"),
        ([("a", {}, {"c": [0, 1]}), ("b", {"c": [0]}, {})], "2 tokens are written, 1 are read"),
        (
            [("a", {"d": [0]}, {"c": [0]}), ("b", {"c": [0]}, {"d": [0]})],
            "without feedback, got a circle: a to b",
        ),
        ([("a", {}, {"c": [1, 0]})], "actor a, channel c: required rising numbers of its 2"),
        ([("a", {}, {"c": [2]})], "rising numbers of its 2 firings"),
        ([("a", {}, {"c": []})], "at least one"),
    ],
)
def test_networks_that_are_none_are_refused(
    actors: list[tuple[str, dict[str, list[int]], dict[str, list[int]]]], message: str
) -> None:
    with pytest.raises(FxloomError, match=message):
        Dataflow([Actor(name, 2, 1, 0, reads, writes) for name, reads, writes in actors])


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, -1)])
def test_senseless_actors_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(FxloomError, match=r"actor a: required at least one firing"):
        Actor("a", *numbers)


@pytest.mark.parametrize("depths", [{"other": 3}, {"c": 0}])
def test_senseless_depths_are_refused(depths: dict[str, int]) -> None:
    with pytest.raises(FxloomError, match=f"got .'{next(iter(depths))}'"):
        simulate(chain(), depths)


def test_tokens_of_all_samples_are_told() -> None:
    run = simulate(residual(), {"skip": 7}, samples=2)
    assert all(len(times) == 16 for times in (*run.written.values(), *run.read.values()))
    assert (np.diff(run.written["back"]) > 0).all()
