"""Checkpoints of a training: one file, whole or not at all, that says what it belongs to.

The file is safetensors: tensors as plain bytes and a JSON header, so that reading one runs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fxloom.errors import RecipeError
from fxloom.swap import sync

FILE = "finetune.safetensors"
FORMAT, VERSION = "fxloom-training", 1

Epochs = list[dict[str, float]]


@dataclass(frozen=True)
class Checkpoint:
    """Where the state of a training is kept.

    folder: made where it is missing. identity: what a training must share with the one that wrote
    the file, texts by what they identify ("graph", "data", or a key of the recipe).
    """

    folder: Path
    identity: Mapping[str, str]

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / FILE

    def save(self, tensors: Mapping[str, Tensor], epochs: Epochs) -> None:
        """Write the state after the last of these epochs; a kill leaves the file before it."""
        header = {
            "format": FORMAT,
            "version": str(VERSION),
            "identity": json.dumps(dict(self.identity)),
            "epochs": json.dumps(epochs),
        }
        partial = self.folder / f"{FILE}.partial"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Copies: tied tensors share memory, which the format does not hold.
            save_file({name: t.detach().cpu().clone() for name, t in tensors.items()}, partial,
                      header)  # fmt: skip
            sync(partial)
            os.replace(partial, self.path)
            sync(self.folder)
        except (OSError, SafetensorError) as fault:
            raise RecipeError(f"checkpoint: {self.path} cannot be written: {fault}") from None

    def load(self) -> tuple[dict[str, Tensor], Epochs] | None:
        """The state and the epochs that lie behind it; None where there is no file.

        Raises RecipeError where the file is damaged or of another graph, recipe or data.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                header = file.metadata() or {}
                if (header.get("format"), header.get("version")) != (FORMAT, str(VERSION)):
                    raise RecipeError(f"{self.path}: is no checkpoint of finetune. {_ADVICE}")
                self._compare(json.loads(header["identity"]))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return tensors, json.loads(header["epochs"])
        except (OSError, SafetensorError, LookupError, ValueError, AttributeError) as fault:
            raise RecipeError(f"{self.path}: is damaged: {fault}. {_ADVICE}") from None

    def _compare(self, found: Mapping[str, Any]) -> None:
        differing = [
            key for key in {**self.identity, **found} if self.identity.get(key) != found.get(key)
        ]
        if not differing:
            return
        said = ", ".join(
            f"{key} {found.get(key)} there, {self.identity.get(key)} here"
            if len(self.identity.get(key, "")) < DIGEST
            else f"another {key}"
            for key in differing
        )
        raise RecipeError(f"{self.path}: belongs to another training: {said}. {_ADVICE}")


_ADVICE = "Give another folder as checkpoint, or remove the file"

DIGEST = 64
"""Letters of a digest, which say nothing to people."""


def digest(parts: Iterable[str | bytes | Tensor]) -> str:
    """A fingerprint of texts, bytes and tensors, in order."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            kept = part.detach().cpu().contiguous()
            total.update(f"{kept.dtype} {tuple(kept.shape)}".encode())
            total.update(kept.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            total.update(part.encode() if isinstance(part, str) else part)
    return total.hexdigest()
