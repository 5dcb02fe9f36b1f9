"""Processes that train together, as `accelerate launch` or torchrun started them.

Every process runs the whole recipe; only training talks to the others, and the first one writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxloom.errors import RecipeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """The processes of a training; one alone where accelerator is None.

    accelerator: of Hugging Face accelerate. index: of this process. count: of all.
    """

    accelerator: Any = None
    index: int = 0
    count: int = 1

    @classmethod
    def launched(cls, *, cpu: bool = False) -> Processes:
        """Those that were launched with this one. cpu: whether they leave GPUs alone.

        Raises RecipeError where accelerate is not installed.
        """
        try:
            from accelerate import Accelerator
            from accelerate.utils import DistributedDataParallelKwargs
        except ImportError:
            raise RecipeError(
                "distributed: required the package accelerate, which is not installed. "
                "pip install 'fxloom[train]'"
            ) from None
        # Parameters that lead to other outputs only have no gradient to wait for.
        options = DistributedDataParallelKwargs(find_unused_parameters=True)
        # Formats are exact in float32, not in what a user may have configured for other trainings.
        accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[options])
        return cls(accelerator, accelerator.process_index, accelerator.num_processes)

    @property
    def device(self) -> torch.device:
        """Where this process trains."""
        device: torch.device = self.accelerator.device
        return device

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients that are the mean over all processes."""
        if self.count == 1:
            return module
        wrapped: nn.Module = self.accelerator.prepare_model(module)
        return wrapped

    def share(self, rows: Tensor) -> Tensor:
        """The rows of a batch that are this process's."""
        return rows[self.index :: self.count]

    def total(self, value: float) -> float:
        """The sum over all processes."""
        if self.count == 1:
            return value
        import torch

        number = torch.tensor(value, dtype=torch.float32, device=self.device)
        return float(self.accelerator.reduce(number, reduction="sum"))

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            self.accelerator.wait_for_everyone()


def train_together(steps: Iterable[object]) -> bool:
    """Whether one of these passes trains on all processes that were launched."""
    return any(getattr(step, "distributed", False) for step in steps)


def is_follower(steps: Iterable[object]) -> bool:
    """Whether this process only helps another to run these passes, which writes the result."""
    return train_together(steps) and int(os.environ.get("RANK", "0")) > 0


def wait_for_all() -> None:
    """Until all processes that train together are here."""
    from accelerate import PartialState

    PartialState().wait_for_everyone()
