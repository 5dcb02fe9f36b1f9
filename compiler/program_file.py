"""Program files: a safetensors archive of the constants with the rest as JSON in its header.

Constants are plain integer tensors (version 1 of the format), or coded ones (version 2).

Data only, so loading runs nothing from the file. Types and intervals of results are not stored but
inferred again, and the whole is verified and compared with the stored digest: what loads is what
was saved, or VerifyError says what is wrong.
"""

import json
import os
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fxloom.coded_tensors import Stored, decode, encode, of_integers, to_integers
from fxloom.errors import VerifyError, WeightsError
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.ops import OPS
from fxloom.program import MAX_ELEMENTS, Program, ProgramBuilder, Value

FORMAT = "fxloom-program"
VERSION, CODED_VERSION = 1, 2


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Input(_Record):
    name: str
    shape: list[int]
    type: FixedPoint
    axes: list[int]
    rounding: Rounding
    overflow: Overflow


class _Constant(_Record):
    name: str
    type: FixedPoint
    stored: Stored | None = None


class _Instr(_Record):
    op: str
    attributes: dict[str, Any]
    args: list[str]
    result: str
    origin: str


class _Output(_Record):
    name: str
    value: str
    axes: list[int]


class _Header(_Record):
    format: str
    version: int
    digest: str
    inputs: list[_Input]
    constants: list[_Constant]
    instrs: list[_Instr]
    outputs: list[_Output]


def save_program(program: Program, path: str | os.PathLike[str], *, coded: bool = False) -> None:
    """Write a program to a file; the same program gives the same bytes.

    coded: whether constants are stored as few distinct values, run lengths and Huffman codes where
    that takes less, as `save_weights` does; else they can be read by whatever reads safetensors.
    """
    tensors: dict[str, Any] = {name: c.data for name, c in program.constants.items()}
    stored: dict[str, Stored] = {}
    if coded:
        found = {name: encode(of_integers(c.data)) for name, c in program.constants.items()}
        tensors = {
            name: each.data.bits if each.stored.coding == "coded" else to_integers(each.data)
            for name, each in found.items()
        }
        stored = {name: each.stored for name, each in found.items()}
    header = {
        "format": FORMAT,
        "version": CODED_VERSION if coded else VERSION,
        "digest": program.digest(),
        "inputs": [
            {
                "name": port.value.name,
                "shape": port.value.shape,
                "type": asdict(port.value.type),
                "axes": port.axes,
                "rounding": port.rounding,
                "overflow": port.overflow,
            }
            for port in program.inputs
        ],
        "constants": [
            {"name": name, "type": asdict(constant.value.type)}
            | ({"stored": stored[name].model_dump(mode="json")} if coded else {})
            for name, constant in program.constants.items()
        ],
        "instrs": [
            {
                "op": instr.op.name,
                "attributes": asdict(instr.op),  # type: ignore[call-overload]
                "args": instr.args,
                "result": instr.result.name,
                "origin": instr.origin,
            }
            for instr in program.instrs
        ],
        "outputs": [asdict(output) for output in program.outputs],
    }
    save_file(tensors, path, metadata={"fxloom": json.dumps(header)})


def load_program(path: str | os.PathLike[str]) -> Program:
    """Read a program; VerifyError if the file is absent, damaged, newer or not a program."""
    path = Path(path)
    try:
        with safe_open(path, framework="numpy") as archive:
            metadata = archive.metadata() or {}
            header = _parse_header(metadata.get("fxloom"), path)
            names = set(archive.keys())
            tensors = {
                constant.name: _tensor(archive, constant, names) for constant in header.constants
            }
    except FileNotFoundError:
        raise VerifyError(f"{path}: no such program file") from None
    except (SafetensorError, OSError) as error:
        raise VerifyError(f"{path}: not a program file, or damaged: {error}") from None
    try:
        program = _rebuild(header, tensors)
    except VerifyError as error:
        raise VerifyError(f"{path}: {error}") from None
    if program.digest() != header.digest:
        raise VerifyError(f"{path}: its digest does not match its contents; it is damaged")
    return program


def _parse_header(text: str | None, path: Path) -> _Header:
    if text is None:
        raise VerifyError(f"{path}: this safetensors file is not an fxloom program")
    try:
        raw = json.loads(text)
        known = (VERSION, CODED_VERSION)
        if (
            isinstance(raw, dict)
            and raw.get("format") == FORMAT
            and raw.get("version") not in known
        ):
            raise VerifyError(
                f"{path}: program format version {raw.get('version')!r}; this fxloom reads "
                f"versions {' and '.join(map(str, known))}. Compile the model again."
            )
        header = _Header.model_validate_json(text)
    except (ValueError, RecursionError) as error:
        raise VerifyError(f"{path}: malformed program header: {_first_line(error)}") from None
    if any((c.stored is None) == (header.version == CODED_VERSION) for c in header.constants):
        raise VerifyError(
            f"{path}: program format version {header.version}, which says how "
            f"{'every constant is' if header.version == CODED_VERSION else 'no constant is'} coded"
        )
    if header.format != FORMAT:
        raise VerifyError(f"{path}: format must be {FORMAT!r}, got {header.format!r}")
    return header


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).split("\n", 1)[0]


def _tensor(archive: Any, constant: _Constant, names: set[str]) -> np.ndarray[Any, Any]:
    name, stored = constant.name, constant.stored
    if name not in names:
        raise VerifyError(f"constant {name} is missing from the file")
    piece = archive.get_slice(name)
    shape, dtype = piece.get_shape(), piece.get_dtype()
    if stored is not None and stored.coding == "coded" and dtype == "U8":
        shape, dtype = stored.shape, stored.dtype
    if prod(shape) > MAX_ELEMENTS or dtype not in ("I8", "I16", "I32", "I64"):
        raise VerifyError(f"constant {name} must be integers, at most 2**31 of them")
    data: np.ndarray[Any, Any] = archive.get_tensor(name)
    if stored is None:
        return data
    try:
        return to_integers(decode(stored, of_integers(data)))
    except WeightsError as fault:
        raise VerifyError(f"constant {name}: {fault}") from None


def _rebuild(header: _Header, tensors: dict[str, np.ndarray[Any, Any]]) -> Program:
    builder = ProgramBuilder()
    values: dict[str, Value] = {}

    def define(value: Value, name: str) -> None:
        if value.name != name:
            raise VerifyError(f"%{name} is defined twice")
        values[name] = value

    for port in header.inputs:
        value = builder.input(
            port.name,
            tuple(port.shape),
            port.type,
            axes=port.axes,
            rounding=port.rounding,
            overflow=port.overflow,
        )
        define(value, port.name)
    for constant in header.constants:
        define(
            builder.constant(constant.name, tensors[constant.name], constant.type), constant.name
        )
    for record in header.instrs:
        if record.op not in OPS:
            raise VerifyError(
                f"{record.origin}: unknown operation {record.op!r}; known: {', '.join(OPS)}"
            )
        try:
            op = TypeAdapter(OPS[record.op]).validate_json(
                json.dumps(record.attributes), strict=True
            )
        except ValidationError as error:
            raise VerifyError(f"{record.origin} ({record.op}): {_first_line(error)}") from None
        missing = [name for name in record.args if name not in values]
        if missing:
            raise VerifyError(f"{record.origin}: %{missing[0]} is used before it is defined")
        args = [values[name] for name in record.args]
        define(builder.emit(op, args, record.origin, record.result), record.result)
    for output in header.outputs:
        if output.value not in values:
            raise VerifyError(f"output {output.name}: %{output.value} is not defined")
        builder.output(values[output.value], output.name, output.axes)
    return builder.build()
