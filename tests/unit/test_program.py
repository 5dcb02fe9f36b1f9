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
from fxloom.storage_table import storage_rows
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
        for coded in (False, True):
            save_program(program, path, coded=coded)
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
        ({"version": 2}, "format version 2, which says how every constant is coded"),
        ({"version": 3}, "format version 3; this fxloom reads versions 1 and 2"),
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


@pytest.mark.parametrize("coded", [False, True])
@given(st.data())
def test_any_flipped_or_missing_byte_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, coded: bool, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "p"
    save_program(small_program(), path, coded=coded)
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


def pruned_program() -> Program:
    """Most of its 64 x 40 weights are zero, the others few distinct values."""
    generator = np.random.default_rng(0)
    weights = generator.integers(-3, 4, (64, 40)) * (generator.random((64, 40)) < 0.1)
    b = ProgramBuilder()
    x = b.input("x", (64,), FixedPoint(8, 1))
    w = b.constant("w", weights, FixedPoint(8, 1))
    b.output(b.emit(ops.MatMul(), [x, w], "fc"), "y")
    return b.build()


def test_coded_constants_take_what_is_counted(tmp_path: Path) -> None:
    program = pruned_program()
    save_program(program, tmp_path / "plain")
    save_program(program, tmp_path / "coded", coded=True)
    assert load_program(tmp_path / "coded").to_text() == program.to_text()
    with safe_open(tmp_path / "coded", framework="numpy") as archive:
        stored = sum(archive.get_tensor(name).nbytes for name in archive.keys())  # noqa: SIM118
    assert 8 * stored == sum(row.huffman_bits for row in storage_rows(program))
    sizes = [(tmp_path / name).stat().st_size for name in ("plain", "coded")]
    assert sizes[0] - sizes[1] > 0.8 * program.constants["w"].data.nbytes


def stored(**changes: object) -> dict[str, object]:
    """A header's list of constants, of which the only one is said to be stored otherwise."""
    kind = {"width": 8, "integer": 1, "signed": True}
    said = {"dtype": "I8", "shape": [64, 40], "coding": "coded", "streams": [1, 1, 1]}
    return {"constants": [{"name": "w", "type": kind, "stored": said | changes}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (stored(shape=[2**20, 2**20]), "constant w must be integers, at most 2"),
        (stored(shape=[2**15, 2**15]), "constant w: required at most .* bytes decoded from"),
        (stored(dtype="F32"), "constant w must be integers"),
        (stored(coding="raw"), "constant w must be integers"),
        (stored(coding="zip"), "constant w must be integers"),
        (stored(), "constant w: required 3 bytes, got U8"),
        (stored(streams=[-1, 2, 3]), "malformed program header"),
    ],
)
def test_a_forged_coding_is_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    save_program(pruned_program(), tmp_path / "p", coded=True)
    edit_header(tmp_path / "p", **changes)
    with pytest.raises(VerifyError, match=message):
        load_program(tmp_path / "p")
