"""A `.pt2` file is data: a good one loads, a crafted one is an error and nothing of it runs."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxloom
from fxloom import CaptureError, capture, load_model
from fxloom.graph import op_name

X = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 64, 5)
        self.register_buffer("offset", torch.arange(5.0))
        self.scale = torch.full((5,), 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.fc(x.view(x.size(0), -1)) * self.scale + self.offset


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A real archive as members, without their root folder."""
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    torch.manual_seed(0)
    batch = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(Net().eval(), (X,), dynamic_shapes=batch), path)
    with zipfile.ZipFile(path) as file:
        return {name.partition("/")[2]: file.read(name) for name in file.namelist()}


def write(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> str:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(f"net/{name}", content)
    return str(path)


def edited(
    archive: dict[str, bytes], member: str, edit: Callable[[Any], object]
) -> dict[str, bytes]:
    document = json.loads(archive[member])
    edit(document)
    return archive | {member: json.dumps(document).encode()}


def graph_of(document: Any) -> Any:
    return document["graph_module"]["graph"]


def refused(tmp_path: Path, members: dict[str, bytes], match: str) -> None:
    with pytest.raises(CaptureError, match=match):
        capture(load_model(write(tmp_path / "x.pt2", members)), X)


def test_real_program_loads_and_computes_what_the_model_computes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Net().eval()
    batch = ({0: torch.export.Dim("batch")},)
    path = tmp_path / "net.pt2"
    torch.export.save(
        torch.export.export(net, (X,), dynamic_shapes=batch), path, extra_files={"notes": "mine"}
    )
    graph = capture(load_model(str(path)), X)
    torch.testing.assert_close(graph(X), net(X))
    origins = [node.meta["origin"] for node in graph.graph.nodes if "origin" in node.meta]
    assert {"conv", "norm", "fc"} <= set(origins)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    x = torch.ones(2, 4)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "net.pt2")
    graph = capture(load_model(str(tmp_path / "net.pt2")), x)
    weights = {name for name, _ in graph.named_parameters() if name.endswith("weight")}
    assert len(weights) == 1


def test_sizes_computed_from_the_batch_are_read(tmp_path: Path) -> None:
    net = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    x = torch.randn(8, 3, 4)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "net.pt2")
    graph = capture(load_model(str(tmp_path / "net.pt2")), x)
    torch.testing.assert_close(graph(x), net(x))


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1)),
        nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(-1)),
    ],
)
def test_decomposed_softmax_is_softmax(tmp_path: Path, net: nn.Module) -> None:
    x = torch.randn(8, 3, 4)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program.run_decompositions(), tmp_path / "net.pt2")
    graph = capture(load_model(str(tmp_path / "net.pt2")), x)
    torch.testing.assert_close(graph(x), net(x))
    assert "_softmax" not in str(graph.graph).replace("log_softmax", "")


def test_weight_norm_is_read(tmp_path: Path) -> None:
    net, x = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), torch.randn(8, 4)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "net.pt2")
    torch.testing.assert_close(capture(load_model(str(tmp_path / "net.pt2")), x)(x), net(x))


def test_decomposed_norms_are_norms_again(tmp_path: Path) -> None:
    x = torch.randn(8, 4, 3)
    net = nn.Sequential(nn.BatchNorm1d(4), nn.LayerNorm(3), nn.GroupNorm(2, 4)).eval()
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program.run_decompositions(), tmp_path / "net.pt2")
    graph = capture(load_model(str(tmp_path / "net.pt2")), x)
    found = [op_name(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert found == ["aten.batch_norm", "aten.layer_norm", "aten.group_norm"]


def test_decomposed_instance_norm_says_how_to_export(tmp_path: Path) -> None:
    x = torch.randn(8, 4, 3)
    net = nn.InstanceNorm1d(4).eval()
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program.run_decompositions(), tmp_path / "net.pt2")
    with pytest.raises(CaptureError, match="without run_decompositions"):
        load_model(str(tmp_path / "net.pt2"))


def test_inputs_given_by_name_are_refused(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
            return x * scale

    x, batch = torch.randn(8, 4), {0: torch.export.Dim("batch")}
    program = torch.export.export(
        Scaled(), (x,), {"scale": x}, dynamic_shapes={"x": batch, "scale": batch}
    )
    torch.export.save(program, tmp_path / "net.pt2")
    for inputs in (x, (x, x)):
        with pytest.raises(CaptureError, match="inputs scale are given by name"):
            capture(load_model(str(tmp_path / "net.pt2")), inputs)


def test_static_batch_says_how_to_export_with_a_dynamic_one(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(Net().eval(), (X,)), tmp_path / "net.pt2")
    with pytest.raises(CaptureError, match=r"dynamic_shapes=\(\{0: torch.export.Dim\('batch'\)\}"):
        capture(load_model(str(tmp_path / "net.pt2")), X)


def every_expression(document: Any, text: str) -> None:
    for meta in graph_of(document)["tensor_values"].values():
        for size in meta["sizes"]:
            if "as_expr" in size:
                size["as_expr"]["expr_str"] = text


@pytest.mark.parametrize(
    "code",
    [
        "open({!r}, 'w')",
        "__import__('pathlib').Path({!r}).touch()",
        "Symbol('s0').__class__.__init__.__globals__['os'].open({!r}, 65)",
        "[].__class__ or open({!r}, 'w')",
        "Max(2, open({!r}, 'w'))",
        "Symbol('s0', positive=open({!r}, 'w'))",
        "(lambda: open({!r}, 'w'))()",
        "FloorDiv(*open({!r}, 'w'))",
        "f\"{{open({!r}, 'w')}}\"",
        "Mul(2, open({!r}, 'w'))",
        "Integer(open({!r}, 'w'))",
        "Integer(-open({!r}, 'w'))",
    ],
)
def test_symbolic_expression_that_would_create_a_file_is_refused(
    archive: dict[str, bytes], tmp_path: Path, code: str
) -> None:
    trace = tmp_path / "trace"
    members = edited(archive, GRAPH, lambda d: every_expression(d, code.format(str(trace))))
    refused(tmp_path, members, "symbolic expression")
    assert not trace.exists()


@pytest.mark.parametrize(
    "text",
    [
        "Integer(Integer(2))",
        "Mul(2)",
        "2**2**2**99",
        "9" * 200,
        "1" * 5000,
        "Symbol(",
        "",
        "s0",
        "1.5",
    ],
)
def test_expression_outside_the_grammar_is_refused(
    archive: dict[str, bytes], tmp_path: Path, text: str
) -> None:
    refused(tmp_path, edited(archive, GRAPH, lambda d: every_expression(d, text)), "expr_str")


class Touch:
    """Its unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def constant(name: str, pickled: bool) -> Callable[[Any], object]:
    meta = {"path_name": name, "is_param": False, "use_pickle": pickled, "tensor_meta": None}
    return lambda document: document["config"].update(offset=meta)


@pytest.mark.parametrize("name", ["tensor_0", "custom_obj_0", "opaque_obj_0"])
def test_pickled_constant_is_refused_and_not_unpickled(
    archive: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    trace = tmp_path / "trace"
    members = edited(archive, CONSTANTS, constant(name, pickled=True))
    members[f"data/constants/{name}"] = pickle.dumps(Touch(trace))
    refused(tmp_path, members, "offset: is a pickled object|pickled object")
    assert not trace.exists()


@pytest.mark.parametrize("member", ["data/weights/model.pt", "data/constants/model.pt"])
def test_legacy_pickles_are_refused_by_name(
    archive: dict[str, bytes], tmp_path: Path, member: str
) -> None:
    trace = tmp_path / "trace"
    buffer = io.BytesIO()
    torch.save(Touch(trace), buffer)
    refused(tmp_path, archive | {member: buffer.getvalue()}, f"{member}.*pickled")
    assert not trace.exists()


def test_pickled_example_inputs_are_never_read(archive: dict[str, bytes], tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    members = archive | {"data/sample_inputs/model.pt": pickle.dumps(Touch(trace))}
    capture(load_model(write(tmp_path / "x.pt2", members)), X)
    assert not trace.exists()


def test_guards_of_the_file_are_not_executed(archive: dict[str, bytes], tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    guard = f"open({str(trace)!r}, 'w') is not None"
    members = edited(archive, GRAPH, lambda d: d.update(guards_code=[guard]))
    capture(load_model(write(tmp_path / "x.pt2", members)), X)
    assert not trace.exists()


def first_node(document: Any, **changes: object) -> None:
    graph_of(document)["nodes"][0].update(changes)


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.from_file.out",
        "torch.ops.aten.save.default",
        "torch.ops.aten.conv2d.__class__",
        "torch.ops.aten.relu.out",
        "torch.ops.higher_order.cond",
        "torch.ops.prims.add.default",
        "torch.load",
        "torch.os.system",
        "_operator.attrgetter",
        "_operator.pow",
        "math.factorial",
        "#x:y",
        "os.system",
    ],
)
def test_unknown_operator_is_refused(
    archive: dict[str, bytes], tmp_path: Path, target: str
) -> None:
    members = edited(archive, GRAPH, lambda d: first_node(d, target=target))
    refused(tmp_path, members, "operator")


def rename_input(document: Any, name: str) -> None:
    text = json.dumps(document).replace('"name": "x"', json.dumps({"name": name})[1:-1])
    document.clear()
    document.update(json.loads(text))


@pytest.mark.parametrize(
    "name", ["x): open('trace', 'w') #", "x\nimport os", "lambda", "", "1x", "x.y", "\u0445"]
)
def test_name_that_is_no_identifier_is_refused(
    archive: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    refused(tmp_path, edited(archive, GRAPH, lambda d: rename_input(d, name)), "identifier")


def weight(document: Any, **changes: object) -> None:
    document["config"]["fc.weight"]["tensor_meta"].update(changes)


HUGE = [{"as_int": 5 * 10**6}, {"as_int": 5 * 10**3}]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"sizes": HUGE}, "fc.weight.*at most"),
        ({"sizes": HUGE, "strides": [{"as_int": 0}, {"as_int": 0}]}, "fc.weight.*at most"),
        ({"sizes": [{"as_int": 50}, {"as_int": 256}]}, "needs more than"),
        ({"strides": [{"as_int": 10**15}, {"as_int": 1}]}, "needs more than"),
        ({"storage_offset": {"as_int": 1}}, "needs more than"),
        ({"storage_offset": {"as_int": -1}}, "negative"),
        ({"sizes": [{"as_int": -5}, {"as_int": 256}]}, "fc.weight"),
        ({"sizes": [{"as_int": 5}]}, "fc.weight"),
        ({"sizes": [{"as_int": 5.0}, {"as_int": 256}]}, r"fc.weight.*required int, got 5\.0"),
        ({"sizes": {"as_int": 5}}, "fc.weight.*required a list"),
        ({"dtype": 99}, "fc.weight.*ScalarType"),
        ({"dtype": 10}, "complex"),
        ({"layout": 1}, "dense"),
        ({"device": {"type": "cuda", "index": 0}}, "device"),
        ({"surprise": 1}, "known keys"),
    ],
)
def test_declared_shape_is_compared_with_the_bytes(
    archive: dict[str, bytes], tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    refused(tmp_path, edited(archive, WEIGHTS, lambda d: weight(d, **changes)), match)


def test_activation_of_100_gb_is_refused(archive: dict[str, bytes], tmp_path: Path) -> None:
    def edit(document: Any) -> None:
        graph_of(document)["tensor_values"]["conv2d"]["sizes"][1:] = HUGE

    refused(tmp_path, edited(archive, GRAPH, edit), "tensor_values.*at most")


def test_operator_that_would_make_100_gb_is_refused(
    archive: dict[str, bytes], tmp_path: Path
) -> None:
    """The graph may declare a small result for an operator that makes a large one."""

    def edit(document: Any) -> None:
        graph = graph_of(document)
        (result,) = graph["outputs"]
        name = result["as_tensor"]["name"]
        node = {
            "target": "torch.ops.aten.repeat.default",
            "inputs": [
                {"name": "self", "arg": {"as_tensor": {"name": name}}, "kind": 1},
                {"name": "repeats", "arg": {"as_ints": [1, 5 * 10**9]}, "kind": 1},
            ],
            "outputs": [{"as_tensor": {"name": "big"}}],
            "metadata": {},
        }
        graph["nodes"].append(node)
        graph["tensor_values"]["big"] = graph["tensor_values"][name]
        text = json.dumps(document["graph_module"]["signature"]["output_specs"])
        specs = json.loads(text.replace(f'"{name}"', '"big"'))
        document["graph_module"]["signature"]["output_specs"] = specs
        graph["outputs"] = [{"as_tensor": {"name": "big"}}]

    refused(tmp_path, edited(archive, GRAPH, edit), "more than 268435456 values")


@pytest.mark.parametrize("keep", [0, 1, 20, 300, 5_000, -1, -30])
def test_truncated_archive_is_refused(archive: dict[str, bytes], tmp_path: Path, keep: int) -> None:
    path = tmp_path / "x.pt2"
    write(path, archive)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CaptureError, match=r"x\.pt2: "):
        load_model(str(path))


def test_flipped_bit_in_a_weight_is_refused(archive: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.pt2"
    write(path, archive)
    content = bytearray(path.read_bytes())
    content[content.index(archive["data/weights/weight_0"]) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CaptureError, match="CRC"):
        load_model(str(path))


def test_compressed_archive_is_refused(archive: dict[str, bytes], tmp_path: Path) -> None:
    """A bomb is compressed."""
    members = archive | {"data/weights/weight_0": bytes(10**7)}
    path = write(tmp_path / "x.pt2", members, zipfile.ZIP_DEFLATED)
    with pytest.raises(CaptureError, match="compressed"):
        load_model(path)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("data/aotinductor/model/x.so", "compiled code"),
        ("models/other.json", "second model"),
        ("data/weights/../../evil", "path leads out"),
        ("data/surprise", "unknown"),
    ],
)
def test_extra_member_is_refused_by_name(
    archive: dict[str, bytes], tmp_path: Path, name: str, match: str
) -> None:
    refused(tmp_path, archive | {name: b""}, match)


def test_member_that_is_there_twice_is_refused(archive: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "x.pt2"
    write(path, archive)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as file:
        file.writestr(f"net/{GRAPH}", b"{}")
    with pytest.raises(CaptureError, match="twice"):
        load_model(str(path))


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.pop("graph_module"),
        lambda d: graph_of(d).update(nodes="none"),
        lambda d: graph_of(d)["nodes"].append(None),
        lambda d: graph_of(d)["nodes"].append(graph_of(d)["nodes"][0]),
        lambda d: graph_of(d)["nodes"].reverse(),
        lambda d: graph_of(d).update(outputs=[{"as_tensor": {"name": "nobody"}}]),
        lambda d: graph_of(d).update(outputs=[{"as_int": True}]),
        lambda d: d["graph_module"]["signature"]["input_specs"].pop(),
        lambda d: d["graph_module"]["module_call_graph"].clear(),
        lambda d: d["schema_version"].update(major=7),
        lambda d: d.update(verifiers=["EVIL"]),
        lambda d: d.update(range_constraints={"s0; x": {"min_val": 0, "max_val": 1}}),
        lambda d: d.update(range_constraints=[]),
        lambda d: first_node(d, inputs=[{"name": "self", "arg": {"as_graph": {}}}]),
        lambda d: first_node(d, inputs=[{"name": "self", "arg": {"as_operator": "os.system"}}]),
        lambda d: first_node(d, inputs=[{"name": "self", "arg": {"as_int": 1, "as_bool": True}}]),
    ],
)
def test_wrong_structure_is_refused(
    archive: dict[str, bytes], tmp_path: Path, edit: Callable[[Any], object]
) -> None:
    refused(tmp_path, edited(archive, GRAPH, edit), ".")


@pytest.mark.parametrize("kind", ["collections.namedtuple", "collections.defaultdict", "os.system"])
def test_structure_of_other_classes_is_refused(
    archive: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    def edit(document: Any) -> None:
        entry = document["graph_module"]["module_call_graph"][0]["signature"]
        entry["out_spec"] = json.dumps([1, {"type": kind, "context": "1", "children_spec": []}])

    refused(tmp_path, edited(archive, GRAPH, edit), "out_spec.*tuples")


@pytest.mark.parametrize("text", [b"[" * 100_000, b"{}", b"null", b"\xff", b"1" * 5000, b"[NaN]"])
def test_json_that_is_no_program_is_refused(
    archive: dict[str, bytes], tmp_path: Path, text: bytes
) -> None:
    refused(tmp_path, archive | {GRAPH: text}, GRAPH)


def test_program_file_compiles(archive: dict[str, bytes], tmp_path: Path) -> None:
    model = load_model(write(tmp_path / "net.pt2", archive))
    build = fxloom.compile(model, data=X.numpy(), out=tmp_path / "build")
    assert build.simulate(X).shape == (2, 5)
