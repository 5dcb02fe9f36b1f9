"""Program: construction, verification, text, digest and files."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from fxloom import ops
from fxloom.errors import VerifyError
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.ops import OPS
from fxloom.program import Program, ProgramBuilder, data_digest
from fxloom.program_file import load_program, save_program
from tests.strategies import PROGRAMS


def small_program() -> Program:
    b = ProgramBuilder()
    x = b.input("x", (2, 2, 3), FixedPoint(8, 3), axes=(1, 2, 0))
    w = b.constant("w", np.array([[1, -2], [3, 4], [0, 5]]), FixedPoint(4, 2))
    y = b.emit(ops.MatMul(), [x, w], "head.fc")
    z = b.emit(ops.Requantize(FixedPoint(6, 3, False), Rounding.RND, Overflow.SAT), [y], "head.fc")
    b.output(z, "y", axes=(2, 0, 1))
    return b.build()


def test_types_follow_from_the_actual_weights() -> None:
    product = small_program().instrs[0].result
    # column 0: 1, 3, 0; column 1: -2, 4, 5; x from -128 to 127
    assert product.lo == -(4 + 5) * 128 - 2 * 127
    assert product.hi == (4 + 5) * 127 + 2 * 128
    assert product.type == FixedPoint(12, 5)


def test_text_form() -> None:
    assert small_program().to_text() == (
        "program\n"
        "  input %x : fixed<8,3>[2, 2, 3] in [-128, 127] from axes [1, 2, 0], RND, SAT\n"
        "  const %w : fixed<4,2>[3, 2] in [-2, 5] #d9fc5e37b1a9\n"
        "  %head.fc : fixed<12,5>[2, 2, 2] in [-1406, 1399] = matmul(%x, %w)  # head.fc\n"
        "  %head.fc_1 : ufixed<6,3>[2, 2, 2] in [0, 63] = requantize(%head.fc) to=ufixed<6,3> "
        "rounding=RND overflow=SAT  # head.fc\n"
        "  output y = %head.fc_1 to axes [2, 0, 1]\n"
    )


def test_verify_rejects_a_wider_result_than_inferred() -> None:
    program = small_program()
    first = program.instrs[0]
    wrong = replace(first, result=replace(first.result, type=FixedPoint(13, 6)))
    with pytest.raises(VerifyError, match=r"head.fc .*expected .*fixed<12,5>.*got"):
        replace(program, instrs=(wrong, *program.instrs[1:])).verify()


def test_verify_rejects_use_before_definition() -> None:
    program = small_program()
    with pytest.raises(VerifyError, match="used before it is defined"):
        replace(program, instrs=program.instrs[::-1]).verify()


def test_verify_rejects_a_constant_outside_its_type() -> None:
    b = ProgramBuilder()
    with pytest.raises(VerifyError, match=r"interval \[8, 8\] does not lie within fixed<4,2>"):
        b.constant("w", np.array([8]), FixedPoint(4, 2))


def test_results_beyond_63_bits_are_refused_by_layer_name() -> None:
    b = ProgramBuilder()
    x = b.input("x", (4,), FixedPoint(40, 3))
    with pytest.raises(VerifyError, match=r"block.square \(mul\): .*1 to 63 bits, got 80"):
        b.emit(ops.Mul(), [x, x], "block.square")


def test_constants_are_stored_as_narrow_as_their_values() -> None:
    assert small_program().constants["w"].data.dtype == np.int8


def test_file_round_trip_and_bytes_are_reproducible(tmp_path: Path) -> None:
    program = small_program()
    save_program(program, tmp_path / "a")
    save_program(small_program(), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = load_program(tmp_path / "a")
    assert loaded.to_text() == program.to_text()
    assert loaded.digest() == program.digest()


@pytest.mark.parametrize("name", sorted(OPS))
def test_every_operation_survives_its_file(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("programs") / "p.fxloom"

    @given(PROGRAMS[name](8))
    def check(program: Program) -> None:
        save_program(program, path)
        assert load_program(path).digest() == program.digest()

    check()


def test_digest_of_much_data_is_that_of_its_int64() -> None:
    data = np.arange(200_003).astype(np.int32)[::-1].reshape(-1, 1)[:-1]
    whole = hashlib.sha256(b"(200002, 1)" + data.astype("<i8").tobytes())
    assert data_digest(data) == whole.hexdigest()


def test_digest_sees_a_single_weight(tmp_path: Path) -> None:
    program = small_program()
    data = program.constants["w"].data.copy()
    data[0, 0] = 2
    changed = replace(program, constants={"w": replace(program.constants["w"], data=data)})
    assert changed.digest() != program.digest()


def edit_header(path: Path, **changes: object) -> None:
    with safe_open(path, framework="numpy") as archive:
        header = json.loads(archive.metadata()["fxloom"])
        tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
    header.update(changes)
    save_file(tensors, path, metadata={"fxloom": json.dumps(header)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "format version 2"),
        ({"format": "other"}, "format must be"),
        ({"digest": "0"}, "digest does not match"),
        ({"instrs": []}, r"output y: %head.fc_1 is not defined"),
        ({"outputs": "y"}, "malformed program header: outputs"),
        ({"surprise": 1}, "malformed program header: surprise"),
    ],
)
def test_a_damaged_header_is_named(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    save_program(small_program(), tmp_path / "p")
    edit_header(tmp_path / "p", **changes)
    with pytest.raises(VerifyError, match=message):
        load_program(tmp_path / "p")


@given(st.data())
def test_any_flipped_or_missing_byte_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "p"
    save_program(small_program(), path)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[position] ^= data.draw(st.integers(1, 255))
    else:
        del content[position:]
    path.write_bytes(content)
    try:
        loaded = load_program(path)
    except VerifyError:
        return
    assert loaded.digest() == small_program().digest()  # only white space or unused bytes changed


def test_a_missing_file_and_a_foreign_file(tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match="no such program file"):
        load_program(tmp_path / "absent")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(VerifyError, match="not a program file"):
        load_program(tmp_path / "text")
    with pytest.raises(VerifyError, match="not a program file"):
        load_program(tmp_path)
