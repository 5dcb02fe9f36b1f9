"""Distill: what a student learns from whom, what stays true meanwhile, what is refused."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

import fxloom
from fxloom.data import Data
from fxloom.errors import DataError, RecipeError
from fxloom.facts import kept_weights
from fxloom.frontend import capture
from fxloom.graph import constant
from fxloom.lowering import lower
from fxloom.passes import Circulant, Distill, Finetune, Prune, Quantize, ShareWeights, teaching
from fxloom.passes import training as training_loop
from fxloom.passes.distillation_losses import (
    attention,
    attention_loss,
    fitted_weights,
    regressor_shape,
    soft_loss,
)
from fxloom.recipe import Recipe

SHORT = {"epochs": 2, "batch": 16}
LONG = {"epochs": 40, "batch": 16, "learning_rate": 0.02}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def net(*sizes: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def images(channels: int, *, padding: int = 1, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    side = 4 + 2 * padding
    return nn.Sequential(
        *(nn.Conv2d(1, channels, 3, padding=padding), nn.ReLU(), nn.Flatten()),
        nn.Linear(channels * side * side, 3),
    ).eval()


X = torch.randn(96, 6, generator=torch.Generator().manual_seed(5))
IMAGES = torch.randn(48, 1, 6, 6, generator=torch.Generator().manual_seed(6))
TEACHER = net(6, 24, 3, seed=1)
with torch.no_grad():
    for parameter in TEACHER.parameters():
        parameter.mul_(4)  # a teacher that is certain
    Y = TEACHER(X).argmax(1)
DATA = Data(X, Y)


def student(*, seed: int = 0) -> fx.GraphModule:
    return capture(net(6, 8, 3, seed=seed), X[:2])


def state(graph: fx.GraphModule) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in graph.state_dict().items()}


def same(one: fx.GraphModule, other: fx.GraphModule) -> bool:
    pairs = zip(state(one).items(), state(other).items(), strict=True)
    return all(name == twin and torch.equal(a, b) for (name, a), (twin, b) in pairs)


def test_the_soft_loss_is_that_of_hinton() -> None:
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    wanted = 9 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(soft_loss(student, teacher, 3.0), wanted)
    # At a high temperature it is half the squared distance of scores without their means, a class.
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    near = soft_loss(student.double(), teacher.double(), 1e3)
    torch.testing.assert_close(near.float(), centred.square().mean() / 2, rtol=1e-2, atol=0)


def test_attention_is_where_squares_are_whatever_their_scale() -> None:
    values = torch.randn(2, 5, 3, 4)
    squares = values.square().sum(1).reshape(2, -1)
    wanted = squares / squares.norm(dim=1, keepdim=True)
    torch.testing.assert_close(attention(values, [3, 4]), wanted)
    torch.testing.assert_close(attention(7 * values, [3, 4]), wanted)
    small = functional.interpolate(values.square().sum(1, keepdim=True), (2, 2), mode="bilinear")
    torch.testing.assert_close(attention(values, [2, 2]), functional.normalize(small.flatten(1)))
    other = attention(torch.randn(2, 8, 3, 4), [3, 4])
    torch.testing.assert_close(attention_loss(wanted, other), (wanted - other).square().mean())
    assert bool(torch.isfinite(attention(torch.zeros(1, 2, 3, 3), [3, 3])).all())


@pytest.mark.parametrize(
    ("guided", "hint", "wanted"),
    [
        ([8], [24], (24, 8)),
        ([4, 6, 6], [9, 6, 6], (9, 4, 1, 1)),
        ([4, 8, 7], [9, 6, 6], (9, 4, 3, 2)),
        ([5, 16], [5, 32], (32, 16)),
        ([4, 10], [6, 8], (6, 4, 3)),
    ],
)
def test_regressors_have_the_kernels_of_the_paper(
    guided: list[int], hint: list[int], wanted: tuple[int, ...]
) -> None:
    assert regressor_shape(guided, hint) == wanted


def test_a_regressor_begins_where_squares_are_least() -> None:
    values = torch.randn(40, 3, 4, 4)
    weight, bias = torch.randn(5, 3, 1, 1), torch.randn(5)
    hint = functional.conv2d(values, weight, bias)
    got = fitted_weights(values, hint, (5, 3, 1, 1))
    torch.testing.assert_close(functional.conv2d(values, *got), hint, rtol=0, atol=2e-2)


def test_a_student_learns_without_labels() -> None:
    graph = student()
    agreed = [float((graph(X).argmax(1) == Y).float().mean())]
    step = Distill(teacher=TEACHER, soft=1, finetune=LONG)
    result = step(graph, Data(X))
    agreed.append(float((result.graph(X).argmax(1) == Y).float().mean()))
    assert agreed[0] < 0.6
    assert agreed[1] > 0.85
    assert result.summary["teacher"] == "Sequential, 243 parameters"
    assert result.summary["loss"] == "1 soft scores at 4"


def program(model: nn.Module) -> torch.export.ExportedProgram:
    batch = {0: torch.export.Dim("batch")}
    return torch.export.export(model, (X[:4],), dynamic_shapes=(batch,))


def test_every_kind_of_teacher_says_the_same(tmp_path: Path) -> None:
    graph, exported = student(), program(TEACHER)
    torch.export.save(exported, tmp_path / "teacher.pt2")
    captured = capture(TEACHER, X[:2])
    kinds: list[Any] = [
        TEACHER,
        captured,
        exported,
        str(tmp_path / "teacher.pt2"),
        lambda x: TEACHER(x),
    ]
    results = [Distill(teacher=each, finetune=SHORT)(graph, DATA).graph for each in kinds]
    for each in results[1:]:
        for a, b in zip(state(results[0]).values(), state(each).values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    layers = {"1": "1"}
    hinted = [
        Distill(teacher=each, hints=layers, finetune=SHORT)(graph, DATA) for each in kinds[:4]
    ]
    assert len({str(each.summary["regressors"]) for each in hinted}) == 1
    for each in hinted[1:]:
        torch.testing.assert_close(
            state(hinted[0].graph)["0.weight"], state(each.graph)["0.weight"], rtol=1e-4, atol=1e-5
        )


def test_by_default_the_model_before_all_passes_teaches() -> None:
    floats = capture(TEACHER, X[:2])
    narrow = Quantize(weights=3, activations=4)
    implied = Recipe([narrow, Distill(finetune=SHORT)]).run(floats, DATA)
    named = Recipe([narrow, Distill(teacher=floats, finetune=SHORT)]).run(floats, DATA)
    other = Recipe([narrow, Distill(finetune=SHORT)]).run(floats, DATA, teacher=net(6, 4, 3))
    assert same(implied.graph, named.graph)
    assert not same(implied.graph, other.graph)
    assert "Sequential" in str(other.steps[1].summary["teacher"])


def test_the_teacher_stays_as_it_was() -> None:
    teacher = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Dropout(0.5), nn.Linear(9, 3))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    step = Distill(teacher=teacher, hints={"1": "1"}, finetune=SHORT)
    graph = student()
    stream = torch.get_rng_state()
    text = str(graph.graph)
    results = [step(graph, DATA).graph for _ in range(2)]
    assert same(*results)  # dropout is off
    assert teacher.training
    assert not teacher[1]._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert torch.equal(stream, torch.get_rng_state())
    assert str(graph.graph) == text
    assert results[0].state_dict().keys() == graph.state_dict().keys()
    assert str(results[0].graph) == text  # no regressor, no other output
    assert results[0](X).shape == (96, 3)


def test_what_a_teacher_says_may_be_asked_again_in_each_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {"hints": {"0": "0"}, "attention": {"1": "1"}, "finetune": {**SHORT, "validation": 0.2}}
    step = Distill(teacher=images(5), **keys)
    data = Data(IMAGES, torch.arange(48) % 3)
    graph = capture(images(4, seed=2), IMAGES[:2])
    kept = step(graph, data).graph
    monkeypatch.setattr(teaching, "CACHED", 0)
    asked = step(graph, data).graph
    for a, b in zip(state(kept).values(), state(asked).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def losses_at(step: Distill, graph: fx.GraphModule, data: Data) -> list[float]:
    summary = step(graph, data).summary
    first, kept = summary["first"], summary["kept"]
    assert isinstance(first, dict)
    assert isinstance(kept, dict)
    return [first["loss"], kept["loss"]]


def test_a_teacher_may_write_on_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teaching, "CACHED", 0)
    teachers: list[Callable[[Tensor], Tensor]] = [TEACHER, lambda x: TEACHER(x.sub_(1).add_(1))]
    steps = (Distill(teacher=each, soft=1.0, finetune=SHORT) for each in teachers)
    plain, written = (state(step(student(), DATA).graph) for step in steps)
    torch.testing.assert_close(plain, written)


def test_hints_and_attention_are_learned() -> None:
    graph = capture(images(4, padding=2, seed=2), IMAGES[:2])
    keys = {"epochs": 20, "batch": 16, "learning_rate": 0.01}
    for options in ({"hints": {"0": "0"}}, {"attention": {"1": "1"}}):
        step = Distill(teacher=images(5), soft=0.0, finetune=keys, **options)
        # Labels that say nothing: only the other loss can fall.
        first, kept = losses_at(step, graph, Data(IMAGES, torch.arange(48) % 3))
        assert kept < first
    attended = Distill(teacher=images(5), soft=1, attention={"1": "1"}, finetune=keys)
    assert (
        losses_at(attended, graph, Data(IMAGES))[1]
        < 0.8 * losses_at(attended, graph, Data(IMAGES))[0]
    )


def test_a_stage_of_hints_trains_only_what_leads_to_them() -> None:
    graph = student()
    seen: list[Tensor] = []
    plain = training_loop.Training._epoch

    def watched(self: training_loop.Training, epoch: int, samples: Any) -> float:
        loss = plain(self, epoch, samples)
        seen.append(self.parameters["2.weight"].detach().clone())
        return loss

    keys = {"epochs": 5, "batch": 16, "validation": 0.25}
    step = Distill(teacher=TEACHER, hints={"1": "1"}, hint_epochs=3, finetune=keys)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_loop.Training, "_epoch", watched)
        result = step(graph, DATA)
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[0], state(graph)["2.weight"])
    assert not torch.equal(seen[2], seen[4])
    assert int(str(result.summary["kept_epoch"])) > 3
    wanted = "hints for 3 epochs, then 0.3 cross_entropy + 0.7 soft scores at 4"
    assert result.summary["loss"] == wanted


def test_few_bits_learn_from_floats_and_lower_exactly() -> None:
    floats = capture(images(6), IMAGES[:2])
    step = Distill(
        soft=1,
        hints={"0": "0"},
        hint_epochs=1,
        attention={"1": "1"},
        finetune={"epochs": 6, "batch": 16, "ranges": True, "narrowing": 1},
    )
    recipe = Recipe([Quantize(weights=3, activations=4, equalize=False), step])
    result = recipe.run(floats, Data(IMAGES)).graph
    got = fxloom.simulate(lower(result), IMAGES.numpy())
    np.testing.assert_array_equal(got, result(IMAGES).detach().numpy())


@pytest.mark.parametrize(
    "before",
    [
        Prune(sparsity=0.6),
        ShareWeights(clusters=3),
        Circulant(block=2, exclude=("2",)),
    ],
    ids=lambda step: step.name,
)
def test_what_passes_before_it_promised_stays_true(before: Any) -> None:
    graph = student()
    made = Recipe([before]).run(graph, DATA).graph
    result = Recipe([before, Distill(hints={"1": "1"}, finetune=SHORT)]).run(graph, DATA)
    assert not {"pruned_tensors_gone", "sharing_gone"} & result.steps[1].summary.keys()
    assert not same(made, result.graph)
    for name in state(made):
        if (kept := kept_weights(made, name)) is not None:
            assert bool((constant(result.graph, name)[~kept] == 0).all())
    numbers = [len(constant(each, "0.weight").unique()) for each in (made, result.graph)]
    assert numbers[1] <= numbers[0]


def test_probabilities_are_softened_like_scores() -> None:
    ends = [nn.Sequential(*net(6, 8, 3), nn.Softmax(1)), nn.Sequential(*TEACHER, nn.Softmax(1))]
    plain = Distill(teacher=TEACHER, finetune=SHORT)(student(), DATA).graph
    ended = Distill(teacher=ends[1], finetune=SHORT)(capture(ends[0], X[:2]), DATA).graph
    torch.testing.assert_close(
        state(plain)["0.weight"], state(ended)["0.weight"], rtol=0.1, atol=2e-3
    )


def test_numbers_are_learned_by_their_squares() -> None:
    graph = capture(net(6, 8, 1), X[:2])
    data = Data(X, X.sum(1))
    step = Distill(teacher=lambda x: x.sum(1, keepdim=True), finetune=LONG)
    first, kept = losses_at(step, graph, data)
    assert kept < 0.2 * first
    assert step(graph, data).summary["loss"] == "0.3 mse + 0.7 mse"


@pytest.mark.parametrize(
    ("labels", "keys", "loss"),
    [
        (TEACHER(X).detach(), {}, "mse"),
        (None, {"loss": "mse"}, "mse"),
        (TEACHER(X).detach(), {"loss": "cross_entropy"}, "soft scores at 4"),
        (Y, {}, "soft scores at 4"),
        (None, {}, "soft scores at 4"),
    ],
)
def test_labels_say_whether_several_outputs_are_numbers(
    labels: Tensor | None, keys: dict[str, Any], loss: str
) -> None:
    step = Distill(teacher=TEACHER, soft=1.0, finetune={"epochs": 1, **keys})
    assert step(student(), Data(X, labels)).summary["loss"] == f"1 {loss}"


def interrupted(step: Distill, graph: fx.GraphModule, epochs: int) -> None:
    """Runs the training until some epochs are saved."""
    plain = training_loop.Training._epoch

    def dying(self: training_loop.Training, epoch: int, samples: Any) -> float:
        if epoch == epochs:
            raise KeyboardInterrupt
        return plain(self, epoch, samples)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_loop.Training, "_epoch", dying)
        with pytest.raises(KeyboardInterrupt):
            step(graph, DATA)


def test_a_training_that_stopped_goes_on_bit_for_bit_with_its_teacher_alone(tmp_path: Path) -> None:
    graph = student()
    keys = {"epochs": 5, "batch": 16, "validation": 0.2}
    losses: dict[str, Any] = {"hints": {"1": "1"}, "hint_epochs": 2}
    whole = Distill(teacher=TEACHER, finetune=keys, **losses)(graph, DATA).graph
    saved = {**keys, "checkpoint": str(tmp_path)}
    for stopped in (1, 2, 4):
        interrupted(Distill(teacher=TEACHER, finetune=saved, **losses), graph, stopped)
    for other, what in (
        ({"teacher": net(6, 24, 3, seed=3)}, "another teacher"),
        ({"temperature": 3.0}, "temperature 4.0 there, 3.0 here"),
        ({"hints": {"0": "1"}}, "hints"),
    ):
        step = Distill(**{"teacher": TEACHER, "finetune": saved, **losses, **other})
        with pytest.raises(RecipeError, match=what):
            step(graph, DATA)
    with pytest.raises(RecipeError, match="another training"):
        Finetune(**saved)(graph, DATA)
    assert same(whole, Distill(teacher=TEACHER, finetune=saved, **losses)(graph, DATA).graph)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = net(6, 8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(x)
        return y, y.sum(1, keepdim=True)


def test_one_of_several_outputs_is_taught() -> None:
    graph = capture(Two(), X[:2])
    step = Distill(teacher=TEACHER, finetune={**SHORT, "output": "output_0"})
    result = step(graph, DATA).graph
    assert [tuple(x.shape) for x in result(X)] == [(96, 3), (96, 1)]
    both = Distill(teacher=Two(), finetune={**SHORT, "output": "output_1", "loss": "mse"})
    assert both(graph, Data(X, X.sum(1))).summary["loss"] == "0.3 mse + 0.7 mse"


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no idea")


def ones(*shape: int) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.ones(len(x), *shape)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"teacher": ones(4)},
            r"required outputs of the student's shape, \[3\] a sample, got \[4\]",
        ),
        ({"teacher": lambda x: (x, x)}, "required one output, .*got 2"),
        ({"teacher": lambda x: x[:1]}, r"the 2 samples of the batch .* 0, got shape \[1, 6\]"),
        ({"teacher": lambda x: "yes"}, "got an object of type str"),
        ({"teacher": lambda x: x[:, :3] / 0}, "NaN or infinity for a sample"),
        ({"teacher": Broken()}, "teacher: Broken, 0 parameters raised ValueError: no idea"),
        ({"teacher": "missing.pt2"}, "teacher: missing.pt2"),
        ({"teacher": TEACHER, "hints": {"9": "1"}}, "9: no layer of the teacher.*It has: 0, 1, 2"),
        ({"teacher": TEACHER, "hints": {"1": "9"}}, "9: no layer of the student.*It has: 0, 1, 2"),
        (
            {"teacher": ones(3), "hints": {"1": "1"}},
            "required a module or a graph, which has layers",
        ),
        (
            {"teacher": TEACHER, "attention": {"1": "1"}},
            r"attention: 1 \[24\] -> 1 \[8\]: required",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Distill(finetune=SHORT, **keys)(student(), DATA)


def test_maps_too_small_for_a_hint_are_refused() -> None:
    graph = capture(images(4, padding=0), IMAGES[:2])
    step = Distill(teacher=images(4), hints={"0": "0"}, finetune=SHORT)
    with pytest.raises(RecipeError, match=r"0 \[4, 6, 6\] -> 0 \[4, 4, 4\].*at least as large"):
        step(graph, Data(IMAGES, torch.arange(48) % 3))


def test_a_teacher_of_other_inputs_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"teacher: .*required shape \['batch', 5\]"):
        Distill(teacher=capture(net(5, 3), torch.zeros(2, 5)), finetune=SHORT)(student(), DATA)


def test_labels_are_required_where_they_count_and_a_teacher_outside_a_recipe() -> None:
    with pytest.raises(DataError, match=r"required labels, y_train, for 0.3 of the loss.*soft = 1"):
        Distill(teacher=TEACHER)(student(), Data(X))
    with pytest.raises(RecipeError, match="required data to train on"):
        Distill(teacher=TEACHER)(student())
    with pytest.raises(RecipeError, match="required one outside a recipe"):
        Distill()(student(), DATA)
    with pytest.raises(RecipeError, match=r"teacher: required a \.pt2 file, a module.*got 3"):
        Recipe([Distill(finetune=SHORT)]).run(student(), DATA, teacher=3)


def test_a_student_that_would_teach_itself_is_told() -> None:
    result = Recipe([Distill(finetune=SHORT)]).run(student(), DATA)
    assert "the teacher is the student as it is" in str(result.steps[0].summary["warnings"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"temperature": 0.0}, "temperature: required a number above 0, got 0.0"),
        ({"soft": 1.5}, "soft: required a share from 0 to 1"),
        ({"soft": 0.0}, "soft: required above 0 where there are no hints"),
        ({"hint_weight": 0.0}, "hint_weight: required a number above 0"),
        ({"hint_epochs": 2}, "hint_epochs: required hints"),
        ({"hint_epochs": 20, "hints": {"a": "b"}}, "required fewer than all 20 epochs, got 20"),
        (
            {"hint_epochs": 2, "hints": {"a": "b"}, "finetune": {"distributed": True}},
            "hint_epochs: required 0 where processes train together",
        ),
        ({"teacher": "net.py:make"}, "names no code to run"),
        ({"teacher": 3}, "teacher: required a .pt2 file, a module.*got 3"),
        ({"teacher": nn.Linear}, "teacher: required a .pt2 file, a module"),
        ({"finetune": {"epoch": 3}}, "finetune.epoch: unknown key. Did you mean epochs?"),
        ({"temprature": 3.0}, "temprature: unknown key. Did you mean temperature?"),
    ],
)
def test_a_key_that_cannot_be_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Distill(**keys)


def test_processes_that_train_together_wait_for_it() -> None:
    assert Distill(finetune={"distributed": True}).distributed
    assert not Distill().distributed


def test_keys_survive_toml() -> None:
    step = Distill(
        teacher="t.pt2", hints={"a.b": "c"}, attention={"d": "e"}, finetune={"epochs": 3}
    )
    assert Recipe.parse(Recipe([step]).to_toml()) == Recipe([step])
    assert "teacher" not in Recipe([Distill()]).to_toml()
    with pytest.raises(RecipeError, match=r"teacher: .*Sequential\. Give it to compile"):
        Recipe([Distill(teacher=TEACHER)]).to_toml()


def test_a_teacher_that_nobody_asks_for_is_an_error() -> None:
    for recipe in Recipe([Quantize()]), Recipe([Distill(teacher="t.pt2"), Quantize()]):
        with pytest.raises(RecipeError, match="required a pass that learns from it"):
            recipe.run(student(), DATA, teacher=TEACHER)
