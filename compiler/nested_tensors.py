"""nn.TransformerEncoder as nested tensors: a result that depends on how a batch is padded.

In eval mode, with a key padding mask, torch's encoder looks where the padding lies. If it is at
the end of every sequence of the batch, the padded positions leave the computation (a nested
tensor) and come back as zeros; otherwise they are computed like the others. No graph does both.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxloom.errors import CaptureError, UnsupportedLayer
from fxloom.exporting import blame, quiet

aten = torch.ops.aten


def refuse_nested_tensors(model: nn.Module, examples: Sequence[Tensor]) -> None:
    """Raise UnsupportedLayer listing the encoders of `model` that would make nested tensors.

    Runs the model once, where it has an encoder that may. Call it inside `untouched(model)`.
    Raises CaptureError where the model fails on the examples.
    """
    encoders = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.TransformerEncoder) and getattr(module, "use_nested_tensor", False)
    }
    if not encoders:
        return
    watch = _Watch()
    hooks = [
        module.register_forward_pre_hook(watch.entering(name)) for name, module in encoders.items()
    ]
    try:
        with torch.no_grad(), quiet(), torch.random.fork_rng(devices=[]), watch:
            model(*examples)
    except Exception as error:
        raise CaptureError(f"the model fails on the example inputs{blame(error)}") from error
    finally:
        for hook in hooks:
            hook.remove()
    if watch.found:
        raise UnsupportedLayer(
            [
                f"{name} (TransformerEncoder): with src_key_padding_mask, torch gives zeros at "
                "padded positions where all padding of the batch is at the ends, and computes "
                "values there otherwise: the result depends on the other samples. Build it with "
                "enable_nested_tensor=False, or set its use_nested_tensor to False where it is "
                "built already (nn.Transformer's own): then values are computed always."
                for name in dict.fromkeys(watch.found)
            ]
        )


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets every encoder see padding at the ends, and notes which ones then make nested tensors.

    torch's own conditions decide (autocast, masks, switches), whatever they are in its version.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []
        self._inside = "the model"

    def entering(self, name: str) -> Callable[..., None]:
        """A forward pre-hook for the module of that name."""

        def note(module: nn.Module, arguments: object) -> None:
            self._inside = name or "the model"

        return note

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is aten._nested_tensor_from_mask_left_aligned.default:
            return True
        if func is aten._nested_tensor_from_mask.default:
            self.found.append(self._inside)
            # of full length, which torch can make whatever the mask is
            return func(args[0], torch.ones_like(args[1]), mask_check=False)
        return func(*args, **(kwargs or {}))
