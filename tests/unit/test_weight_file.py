"""Files of weights: what was saved comes back bit by bit, and nothing else is believed."""

import json
import os
import pickle
import random
import resource
import struct
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.fx import GraphModule

import fxloom
from fxloom.coded_tensors import EXPANSION, SMALL
from fxloom.data import Data
from fxloom.editing import copy_graph
from fxloom.errors import WeightsError
from fxloom.facts import facts, keep_zeros, share, sharing
from fxloom.passes import Prune, Quantize
from fxloom.sharing import Circulant, Codebook, Hashed, Products, Shared, expanded, means
from fxloom.weight_file import read_coded
from fxloom.weight_storage import row_of_entry, storage_of_file
from fxloom.weights import tensors_of


class Net(nn.Module):
    """Two layers, one of them with a batch norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 36)
        self.norm = nn.BatchNorm1d(36)
        self.last = nn.Linear(36, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.relu(self.norm(self.first(x))))
        return y


@cache
def data() -> Tensor:
    return torch.randn(64, 24, generator=torch.Generator().manual_seed(1))


@cache
def stage(name: str) -> GraphModule:
    """A graph as some recipe has left it. Not to be changed."""
    if name == "float":
        torch.manual_seed(0)
        return fxloom.capture(Net().eval(), data()[:2])
    if name == "pruned":
        return Prune(sparsity=0.8)(stage("float")).graph
    if name in STRUCTURES:
        return shared(stage("float"), STRUCTURES[name])
    if name == "pruned codebook":
        return shared(stage("pruned"), STRUCTURES["codebook"])
    before = name.removeprefix("quantized ")
    step = Quantize(weights=4, equalize=False, weight_rounding="nearest")
    return step(stage(before), Data(data())).graph


def shared(graph: GraphModule, structure: Shared) -> GraphModule:
    """The same graph, its first matrix with one number a class."""
    result = copy_graph(graph)
    kept = facts(graph)["first.weight"].kept if "first.weight" in facts(graph) else None
    numbers = means(structure, result.first.weight, kept)
    result.first.weight = nn.Parameter(expanded(structure, numbers, kept).float())
    if kept is not None:
        keep_zeros(result, "first.weight", kept)
    share(result, "first.weight", structure)
    return result


INDICES = torch.randint(0, 16, (36, 24), generator=torch.Generator().manual_seed(2))
STRUCTURES: dict[str, Shared] = {
    "codebook": Codebook.of(INDICES, 16),
    "codebooks": Codebook.of(INDICES, 16, 4),
    "hashed": Hashed((36, 24), 50, 2**64 - 1),
    "products": Products.of((36, 24), INDICES[:, :5], 16, 5),
    "circulant": Circulant((36, 24), 5),
    "circulant image": Circulant((36, 24), 4, 6),
}
STAGES = [
    *("float", "pruned", *STRUCTURES, "pruned codebook"),
    *("quantized float", "quantized pruned", "quantized pruned codebook"),
]


def saved(name: str, folder: Path) -> Path:
    path = folder / "w.safetensors"
    fxloom.save_weights(stage(name), path)
    return path


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def known(graph: GraphModule) -> list[str]:
    """All facts, comparable; indices of pruned weights say nothing."""
    texts = []
    for name, fact in sharing(graph).items():
        kept = facts(graph)[name].kept if name in facts(graph) else torch.tensor(True)
        indices = [kept * x.int() for x in fact.identity[1:] if isinstance(x, Tensor)]
        texts.append(str((name, fact.identity[0], [each.tolist() for each in indices])))
    return sorted([*texts, *map(str, facts(graph).items())])


@pytest.mark.parametrize("name", STAGES)
def test_a_graph_comes_back_with_all_that_is_known_of_it(name: str, tmp_path: Path) -> None:
    graph = stage(name)
    blank = copy_graph(graph)
    for key, tensor in tensors_of(graph).items():
        *owner, leaf = key.split(".")
        fresh = torch.zeros_like(tensor)
        fresh = nn.Parameter(fresh) if isinstance(tensor, nn.Parameter) else fresh
        setattr(blank.get_submodule(".".join(owner)), leaf, fresh)
    blank.meta = {**blank.meta, "facts": {}, "shared": {}}
    loaded = fxloom.load_weights(saved(name, tmp_path), blank)
    assert torch.equal(loaded(data()), graph(data()))
    assert not any(tensor.any() for tensor in blank.parameters())
    if name.startswith("quantized"):
        assert fxloom.lower(loaded).digest() == fxloom.lower(graph).digest()
    else:
        for key, tensor in tensors_of(graph).items():
            assert bits(tensors_of(loaded)[key]) == bits(tensor), key
    assert known(loaded) == known(graph)


def test_weights_that_are_zero_and_not_pruned_stay_so(tmp_path: Path) -> None:
    graph = copy_graph(stage("pruned"))
    kept = facts(graph)["first.weight"].kept.clone()
    kept[:3] = True
    keep_zeros(graph, "first.weight", kept)
    fxloom.save_weights(graph, tmp_path / "w")
    written = {w.entry.name: w for w in read_coded(tmp_path / "w")}
    assert {name: set(w.patterns) for name, w in written.items() if w.entry.zeros} == {
        "first.weight": {"values", "kept"},
        "last.weight": {"values"},
    }
    loaded = fxloom.load_weights(tmp_path / "w", stage("float"))
    assert torch.equal(facts(loaded)["first.weight"].kept, kept)
    assert known(loaded) == known(graph)


def test_pruned_weights_have_no_sign(tmp_path: Path) -> None:
    graph = copy_graph(stage("pruned"))
    graph.first.weight = nn.Parameter(graph.first.weight * 1.0)
    negative = facts(graph)["first.weight"].kept.logical_not()
    with torch.no_grad():
        graph.first.weight[negative] = -0.0
    fxloom.save_weights(graph, tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == saved("pruned", tmp_path).read_bytes()


def test_hashed_and_circulant_weights_store_their_numbers_alone(tmp_path: Path) -> None:
    for name, count in (("hashed", 50), ("circulant", 8 * 5 * 5)):
        written = read_coded(saved(name, tmp_path))
        (found,) = [w for w in written if w.entry.name == "first.weight"]
        assert {kind: list(p.shape) for kind, p in found.patterns.items()} == {"numbers": [count]}
        assert found.nbytes <= 4 * count + 4
        row = row_of_entry(found)
        assert (row.weights, row.values, row.stored) == (36 * 24, count, count)


class Everything(nn.Module):
    """Tensors of all types, tied ones, and values that are easily lost."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 5)
        self.b = nn.Linear(5, 5)
        self.b.weight = self.a.weight
        special = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-45, 0.0, 3.0])
        special.view(torch.int32)[2] |= 12345
        tensors = {
            "special": special,
            "scalar": torch.tensor(2.5),
            "empty": torch.zeros(3, 0),
            "step": torch.tensor(7),
            "truth": torch.tensor([[True, False], [False, False]]),
            "zeros": torch.zeros(200_000),
            "least": torch.tensor([-(2**63), 2**63 - 1]),
            "part": torch.arange(12.0).reshape(3, 4)[:, 1],
            "complex": torch.tensor([1 + 2j]),
        }
        for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn):
            tensors[str(dtype).replace(".", "_")] = special[:4].to(dtype)
        for dtype in (torch.int8, torch.int16, torch.uint8, torch.uint16, torch.uint32):
            tensors[str(dtype).replace(".", "_")] = torch.arange(40).to(dtype)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.register_buffer("overlapping", self.part[1:])


def test_a_models_state_comes_back_bit_by_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, fresh = Everything(), Everything()
    fxloom.save_weights(model, tmp_path / "w")
    state = fxloom.load_weights(tmp_path / "w")
    fresh.load_state_dict(state)
    assert list(state) != []
    assert set(state) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert (state[name].dtype, state[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits(state[name]) == bits(tensor), name
        assert bits(fresh.state_dict()[name]) == bits(tensor), name
    assert state["a.weight"] is state["b.weight"]


def test_the_same_weights_give_the_same_bytes_and_change_with_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fxloom.save_weights(stage("pruned"), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_what_was_loaded_does_not_change_with_the_file(tmp_path: Path) -> None:
    path = saved("float", tmp_path)
    state = fxloom.load_weights(path)
    before = {name: tensor.clone() for name, tensor in state.items()}
    with open(path, "r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert all(torch.equal(state[name], before[name]) for name in state)


@pytest.mark.parametrize("name", STAGES)
def test_a_file_takes_what_is_counted_and_a_header(name: str, tmp_path: Path) -> None:
    path = saved(name, tmp_path)
    found = storage_of_file(path)
    counted = sum(row.huffman_bits for row in found.rows)
    assert 8 * found.coded_bytes == counted
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert found.nbytes == path.stat().st_size == found.coded_bytes + 8 + length
    assert sum(row.weights for row in found.rows) == sum(
        tensor.numel() for tensor in tensors_of(stage(name)).values()
    )
    assert str(found.nbytes) in found.to_json()


def test_widths_of_run_lengths_are_asked_for(tmp_path: Path) -> None:
    fxloom.save_weights(stage("quantized pruned"), tmp_path / "w", index_bits=2)
    rows = {row.name: row for row in storage_of_file(tmp_path / "w").rows}
    assert {rows["first.weight"].index_bits, rows["last.weight"].index_bits} <= {0, 2}
    assert 2 in (rows["first.weight"].index_bits, rows["last.weight"].index_bits)
    with pytest.raises(WeightsError, match="index_bits: required 0 to 16, got 17"):
        fxloom.save_weights(stage("pruned"), tmp_path / "w", index_bits=17)


def test_what_is_known_and_not_true_is_not_written(tmp_path: Path) -> None:
    graph = copy_graph(stage("codebook"))
    graph.first.weight = nn.Parameter(graph.first.weight + torch.randn(36, 24))
    with pytest.raises(WeightsError, match=r"first.weight: required one number a class of a code"):
        fxloom.save_weights(graph, tmp_path / "w")


# What is no file of weights -----------------------------------------------------------------------


class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mknod, (str(self.path),)


def test_other_files_are_refused_and_never_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    others: dict[str, tuple[Callable[[Path], object], str]] = {
        "absent": (lambda path: None, "no such file of weights"),
        "folder": (lambda path: path.mkdir(), "required a safetensors file of fxloom weights"),
        "text": (lambda path: path.write_text("hello"), "required a safetensors file"),
        "nothing": (lambda path: path.write_bytes(b""), "required a safetensors file"),
        "pickle": (lambda path: path.write_bytes(pickle.dumps(Evil(made))), "safetensors file"),
        "torch": (lambda path: torch.save({"x": Evil(made)}, path), "safetensors file"),
        "model": (lambda path: save_file({"w": torch.zeros(2)}, path), "another safetensors file"),
        "program": (
            lambda path: fxloom.save_program(fxloom.lower(stage("quantized float")), path),
            "required the format 'fxloom-weights', got 'fxloom-program'",
        ),
        "listed": (
            lambda path: save_file({}, path, {"fxloom": "[1]"}),
            r"required the format 'fxloom-weights', got \[1\]",
        ),
        "deep": (
            lambda path: save_file({}, path, {"fxloom": "[" * 100_000}),
            "malformed header",
        ),
    }
    for name, (write, message) in others.items():
        write(tmp_path / name)
        with pytest.raises(WeightsError, match=message) as caught:
            fxloom.load_weights(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    assert not made.exists()


def edited(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> Path:
    """The file with another header or other tensors."""
    with safe_open(path, framework="pt") as archive:
        header = json.loads(archive.metadata()["fxloom"])
        tensors = {name: archive.get_tensor(name).clone() for name in archive.keys()}  # noqa: SIM118
    change(header, tensors)
    save_file(tensors, path, {"fxloom": json.dumps(header)})
    return path


def entry(header: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [each for each in header["tensors"] if name in each["names"]]
    assert isinstance(found, dict)
    return found


def swap(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Weights of one layer under the name of the other."""
    first, last = entry(header, "norm.weight"), entry(header, "norm.bias")
    first["names"], last["names"] = last["names"], first["names"]


CHANGES: dict[str, tuple[Callable[[dict[str, Any], dict[str, Tensor]], object], str]] = {
    "version": (lambda h, t: h.update(version=2), "required version 1 of the format, got 2"),
    "format": (lambda h, t: h.update(format="x"), "required the format 'fxloom-weights', got 'x'"),
    "surprise": (lambda h, t: h.update(surprise=1), "malformed header: surprise"),
    "digest": (lambda h, t: h.update(digest="0"), "its digest is not that of its contents"),
    "no tensors": (lambda h, t: h.update(tensors=[]), "required no '.*', which belongs to no"),
    "swapped": (swap, r"norm.(weight|bias): (damaged: required|required \d bytes)"),
    "swapped bytes": (
        lambda h, t: t.update({"norm.bias:values": t["norm.weight:values"] + 0}),
        r"norm.bias: (damaged: required values with SHA-256|required \d bytes)",
    ),
    "missing": (lambda h, t: t.pop("last.bias"), "last.bias: required 'last.bias' in the file"),
    "more": (lambda h, t: t.update(x=torch.zeros(1)), "required no 'x', which belongs to no"),
    "twice": (lambda h, t: entry(h, "last.bias")["names"].append("norm.bias"), "norm.bias: is "),
    "other type": (
        lambda h, t: t.update({"last.bias": t["last.bias"].double()}),
        r"last.bias: required F32 of shape \[8\], got F64 of shape \[8\]",
    ),
    "unknown type": (lambda h, t: entry(h, "last.bias").update(dtype="F7"), "last.bias: type:"),
    "unknown coding": (
        lambda h, t: (
            entry(h, "last.bias")["coded"]["values"].update(coding="zip"),
            t.update({"last.bias:values": t.pop("last.bias")}),
        ),
        "last.bias: coding: required one of raw, coded, got 'zip'",
    ),
    "checksum": (
        lambda h, t: entry(h, "last.weight").update(sha256="0" * 64),
        "last.weight: damaged: required values with SHA-256 0000",
    ),
    "streams": (
        lambda h, t: entry(h, "first.weight")["coded"]["values"].update(streams=[1, 2, 3]),
        "first.weight: required 6 bytes, got U8",
    ),
    "values": (
        lambda h, t: t["last.bias"].add_(1),
        "last.bias: damaged: required values with SHA-256",
    ),
    "shape": (
        lambda h, t: entry(h, "last.bias").update(shape=[4, 2]),
        r"last.bias: values: required shape \[4, 2\], got \[8\]",
    ),
    "giant": (
        lambda h, t: [
            each.update(shape=[2**40]) for each in
            (entry(h, "norm.running_mean"), entry(h, "norm.running_mean")["coded"]["values"])
        ],
        r"norm.running_mean: required at most 65,\d+ bytes|required at most \d+,\d+ bytes decoded",
    ),
    "endless": (
        lambda h, t: entry(h, "last.bias").update(shape=[0, 2**47, 2**47]),
        "last.bias: required at most",
    ),
    "negative": (lambda h, t: entry(h, "last.bias").update(shape=[-8]), "malformed header: tens"),
    "steps": (lambda h, t: entry(h, "last.bias").update(steps=[3]), "last.bias"),
    "facts": (lambda h, t: entry(h, "last.bias").update(shared={"kind": "x"}), "malformed header"),
    "kinds": (
        lambda h, t: entry(h, "last.bias").update(shared={"kind": "hashed", "size": 4}),
        "last.bias: required one number a class of 4 hash buckets",
    ),
    "classes": (
        lambda h, t: entry(h, "last.bias").update(shared={"kind": "hashed", "size": 2**31 - 1}),
        "last.bias: required at most 1,048,704 classes",
    ),
    "indices": (
        lambda h, t: entry(h, "last.bias").update(shared={"kind": "codebook", "size": 4}),
        r"last.bias: required \['indices'\] besides, got \[\]",
    ),
    "circulant": (
        lambda h, t: entry(h, "last.bias").update(shared={"kind": "circulant", "size": 4}),
        "last.bias: required a matrix for circulant blocks",
    ),
    "positions": (
        lambda h, t: entry(h, "last.weight").update(
            shared={"kind": "circulant", "size": 4, "positions": 37}
        ),
        "last.weight: required a matrix for circulant blocks at 37 positions",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_forged_file_is_refused_by_the_name_of_the_tensor(name: str, tmp_path: Path) -> None:
    change, message = CHANGES[name]
    path = edited(saved("pruned", tmp_path), change)
    with pytest.raises(WeightsError, match=message):
        fxloom.load_weights(path)


def test_every_cut_and_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = saved("quantized pruned codebook", tmp_path)
    whole = path.read_bytes()
    wanted = {name: bits(tensor) for name, tensor in fxloom.load_weights(path).items()}
    (length,) = struct.unpack("<Q", whole[:8])
    cuts = [*range(0, 16), *range(16, len(whole), 150), len(whole) - 1]
    flips = [*range(0, 8), *range(8, length + 8, 30), *range(length + 8, len(whole), 5)]
    refused = 0
    for place, is_cut in [*((n, True) for n in cuts), *((n, False) for n in flips)]:
        content = bytearray(whole[:place] if is_cut else whole)
        if not is_cut:
            content[place] ^= 1 << place % 8
        path.write_bytes(content)
        try:
            state = fxloom.load_weights(path)
        except WeightsError:
            refused += 1
        else:  # of the header a space, or a letter's spelling
            assert not is_cut
            assert place < length + 8
            assert {name: bits(tensor) for name, tensor in state.items()} == wanted
    assert refused > 0.98 * (len(cuts) + len(flips))


def test_what_a_crafted_file_says_beyond_checksums_is_refused_too(tmp_path: Path) -> None:
    """Random bytes where coded weights are, and random numbers in the header: nothing but
    WeightsError, and never more memory than the file can be worth."""
    chance = random.Random(0)
    original = saved("pruned", tmp_path).read_bytes()
    wanted = {name: bits(tensor) for name, tensor in tensors_of(stage("pruned")).items()}
    path = tmp_path / "w.safetensors"
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        refused = 0
        for _ in range(60):
            path.write_bytes(original)
            edited(path, lambda header, tensors: _craft(header, tensors, chance))
            try:
                state = fxloom.load_weights(path)
            except WeightsError:
                refused += 1
            else:  # what was changed was changed back
                assert {name: bits(tensor) for name, tensor in state.items()} == wanted
        assert refused > 55
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB


def _craft(header: dict[str, Any], tensors: dict[str, Tensor], chance: random.Random) -> None:
    found = chance.choice(header["tensors"])
    stored = chance.choice(list(found["coded"].values()))
    coded = [name for name, tensor in tensors.items() if tensor.dtype == torch.uint8]
    match chance.randrange(4):
        case 0:
            data = tensors[chance.choice(coded)]
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        case 1:
            sizes = [2 ** chance.randrange(47) for _ in range(chance.randint(1, 3))]
            found["shape"] = stored["shape"] = sizes
        case 2:
            stored["streams"] = [chance.randrange(99) for _ in range(chance.randint(0, 3))]
        case _:
            tensors[chance.choice(coded)] = torch.randint(0, 256, (chance.randrange(1, 99),)).byte()


def test_a_few_bytes_cannot_fill_a_memory(tmp_path: Path) -> None:
    """All zeros are as small as weights can be: what is written can be read, and no more."""
    for size in (1000, SMALL // 4, 10**6):
        fxloom.save_weights(Zeros(size), tmp_path / "w")
        assert fxloom.load_weights(tmp_path / "w")["weight"].shape == (size,)
        (written,) = read_coded(tmp_path / "w")
        assert 4 * size <= SMALL + EXPANSION * written.nbytes

    def claim(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        (only,) = header["tensors"]
        only["shape"] = only["coded"]["values"]["shape"] = [10**12]

    with pytest.raises(WeightsError, match=r"weight: required at most [\d,]+ bytes decoded from"):
        fxloom.load_weights(edited(tmp_path / "w", claim))


class Zeros(nn.Module):
    """Nothing but zeros."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))


# What does not belong together --------------------------------------------------------------------


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = saved("float", tmp_path)
    torch.manual_seed(0)
    wider = Net()
    wider.last = nn.Linear(36, 9)
    with pytest.raises(WeightsError, match=r"last.weight: required .* \[9, 36\].* got .*\[8, 36\]"):
        fxloom.load_weights(path, fxloom.capture(wider.eval(), data()[:2]))
    other = nn.Sequential(nn.Linear(24, 8))
    with pytest.raises(WeightsError, match="required one of the graph's tensors, got 'first"):
        fxloom.load_weights(path, fxloom.capture(other, data()[:2]))
    with pytest.raises(WeightsError, match="required one of the graph's tensors, got 'norm"):
        fxloom.load_weights(path, stage("quantized float"))
    fxloom.save_weights(nn.Sequential(nn.Linear(24, 8)), path)
    both = nn.Sequential(nn.Linear(24, 8), nn.Linear(8, 8))
    with pytest.raises(WeightsError, match=r"required 1.bias, 1.weight of the graph, got no such"):
        fxloom.load_weights(path, fxloom.capture(both, data()[:2]))


def test_weights_that_were_rounded_otherwise_are_refused(tmp_path: Path) -> None:
    path = saved("quantized float", tmp_path)
    step = Quantize(weights=3, equalize=False, weight_rounding="nearest")
    narrower = step(stage("float"), Data(data())).graph
    with pytest.raises(WeightsError, match=r"weight: required weights that fixed<3,.*> holds"):
        fxloom.load_weights(path, narrower)


def test_a_model_is_told_how_to_load_its_state(tmp_path: Path) -> None:
    path = saved("float", tmp_path)
    with pytest.raises(WeightsError, match=r"got a Net. Use model.load_state_dict"):
        fxloom.load_weights(path, Net())  # type: ignore[call-overload]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be written"):
        fxloom.save_weights(Net(), tmp_path / "absent" / "w")
    fxloom.save_weights(Net(), tmp_path / "w")
    before = (tmp_path / "w").read_bytes()
    broken = Net()
    broken.register_buffer("sparse", torch.eye(3).to_sparse())
    with pytest.raises(WeightsError, match=r"sparse: required a dense tensor .*got torch.float32"):
        fxloom.save_weights(broken, tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_what_is_no_model_or_no_width_or_has_no_values_yet_is_refused(tmp_path: Path) -> None:
    state = Net().state_dict()
    with pytest.raises(WeightsError, match="required a graph or a model, got a OrderedDict"):
        fxloom.save_weights(state, tmp_path / "w")  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=r"index_bits: required 0 to 16, got 2\.5"):
        fxloom.save_weights(Net(), tmp_path / "w", index_bits=2.5)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="cannot be written"):
        fxloom.save_weights(Net(), "")
    with pytest.raises(WeightsError, match="weight: required a tensor with values"):
        fxloom.save_weights(nn.LazyLinear(3), tmp_path / "w")
    assert not list(tmp_path.iterdir())


def test_two_tensors_with_one_name_in_the_file_are_refused(tmp_path: Path) -> None:
    clash = nn.Module()
    clash.register_buffer("w", torch.zeros(9, dtype=torch.int8))
    clash.register_buffer("w:values", torch.rand(3))
    with pytest.raises(WeightsError, match="w:values: two tensors would have this name"):
        fxloom.save_weights(clash, tmp_path / "w")


def test_a_file_is_not_decoded_over_itself(tmp_path: Path) -> None:
    from fxloom.weights import save_plain

    path = saved("pruned codebook", tmp_path)
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(path)
    for out in (path, tmp_path / "link"):
        with pytest.raises(WeightsError, match="is the file that is decoded"):
            save_plain(path, out)
    assert path.read_bytes() == before


def test_plain_files_have_every_tensor_under_its_name(tmp_path: Path) -> None:
    from fxloom.weights import save_plain

    path = saved("pruned codebook", tmp_path)
    save_plain(path, tmp_path / "plain")
    plain = load_file(tmp_path / "plain")
    for name, tensor in fxloom.load_weights(path).items():
        assert torch.equal(plain[name], tensor)
