"""Distillation: a graph learns what a teacher says, with labels or without.

Whatever the passes before have made of the graph (few bits, few weights, small layers), it trains
as `finetune` trains it, towards another loss; zeros stay zero and shared weights one number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

from torch import fx

from fxloom.errors import RecipeError
from fxloom.passes.finetune import Finetune
from fxloom.passes.teachers import teacher_problem
from fxloom.passes.teaching import Teaching
from fxloom.recipe import PassResult, teacher_of_recipe
from fxloom.settings import build, typed_keys

if TYPE_CHECKING:
    from fxloom.data import Data


@typed_keys(RecipeError)
@dataclass(frozen=True)
class Distill:
    """Training towards what a teacher says: its scores, the values or the attention of its layers.

    teacher: a .pt2 file of torch.export.save, which is read as data; from Python also a module, a
    graph, an exported program or a function of a batch; by default what --teacher names, else the
    graph with which the recipe began. soft: share of the loss that is of the teacher's scores,
    softened by temperature (Hinton 2015); the rest is of the labels, and 1 needs none. Where
    outputs are numbers and not scores of classes, it is of their squared differences: with labels
    that are such numbers, one output only, or loss = "mse" in finetune. hints: layers of the
    teacher, each with the one of the student that is to give the same (FitNets, Romero 2015; of
    layers that are called several times the last call), through a regressor where shapes differ or
    bits are few, which trains along and is dropped. hint_epochs: how many epochs in the beginning
    train for the hints alone, which then end; 0: hints add hint_weight times their loss all the
    time. attention: likewise layers that are to look at the same places (Zagoruyko 2017), with
    attention_weight. finetune: keys of the finetune pass.
    """

    name: ClassVar[str] = "distill"
    needs_data: ClassVar[bool] = True

    teacher: Any = field(
        default=None, metadata={"advice": ". Give it to compile, or Recipe.run, as teacher"}
    )
    temperature: float = 4.0
    soft: float = 0.7
    hints: Mapping[str, str] = field(default_factory=dict)
    hint_weight: float = 1.0
    hint_epochs: int = 0
    attention: Mapping[str, str] = field(default_factory=dict)
    attention_weight: float = 1000.0
    finetune: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        training, problems = build(Finetune, self.finetune)
        problems = [f"finetune.{line}" for line in problems]
        demands = {
            "temperature": (0 < self.temperature < inf, "a number above 0"),
            "soft": (0 <= self.soft <= 1, "a share from 0 to 1"),
            "hint_weight": (0 < self.hint_weight < inf, "a number above 0"),
            "attention_weight": (0 < self.attention_weight < inf, "a number above 0"),
            "hint_epochs": (self.hint_epochs >= 0, "at least 0"),
        }
        problems += [
            f"{key}: required {demand}, got {getattr(self, key)}"
            for key, (holds, demand) in demands.items()
            if not holds
        ]
        if not (self.soft or self.hints or self.attention):
            problems.append("soft: required above 0 where there are no hints and no attention")
        if self.hint_epochs > 0:
            problems += self._stage_problems(training)
        if self.teacher is not None and (wrong := teacher_problem(self.teacher)):
            problems.append(f"teacher: {wrong}")
        if problems:
            raise RecipeError("\n".join(problems))

    @property
    def takes_teacher(self) -> bool:
        """Whether it learns from the teacher of the recipe."""
        return self.teacher is None

    @property
    def distributed(self) -> bool:
        """Whether the processes that were launched train together."""
        return bool(self.finetune.get("distributed", False))

    @property
    def seed(self) -> int:
        """Of the order of samples, and of regressors."""
        return int(self.finetune.get("seed", 0))

    def __call__(self, graph: fx.GraphModule, data: Data | None = None) -> PassResult:
        if data is None:
            raise RecipeError("distill: required data to train on, got none")
        given = teacher_of_recipe() if self.teacher is None else self.teacher
        if given is None:
            raise RecipeError(
                "distill: teacher: required one outside a recipe, where no graph was first: a "
                "module, a graph, an exported program, a function of a batch or a .pt2 file"
            )
        if self.teacher is None and (wrong := teacher_problem(given)):
            raise RecipeError(f"distill: teacher: {wrong}")
        goal = Teaching(self, given)
        result = Finetune(**self.finetune).towards(goal, graph, data)
        summary: dict[str, object] = {"teacher": goal.teacher.title, **result.summary}
        if goal.regressors:
            summary["regressors"] = goal.regressors
        if given is graph:
            summary["warnings"] = [
                "distill: the teacher is the student as it is. Give another one (--teacher), or "
                "put passes that change the graph before this one"
            ]
        return PassResult(result.graph, True, summary)

    def _stage_problems(self, training: Finetune | None) -> list[str]:
        """What stands against a stage of hints alone."""
        problems = [] if self.hints else ["hint_epochs: required hints, which train then"]
        if training is not None and self.hint_epochs >= training.epochs:
            problems.append(
                f"hint_epochs: required fewer than all {training.epochs} epochs, got "
                f"{self.hint_epochs}"
            )
        if self.distributed:  # layers that no loss reaches have no gradients to wait for
            problems.append("hint_epochs: required 0 where processes train together")
        return problems
