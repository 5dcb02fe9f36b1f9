"""Targets: parts, settings of layers, TOML in and out."""

from pathlib import Path
from typing import Any

import pytest

from fxloom.errors import RecipeError, TargetError
from fxloom.passes.quantize import Quantize
from fxloom.target import LayerSettings, Target

# LUT, FF, DSP, BRAM18 (M20K), URAM, written a second time on purpose.
RESOURCES = {
    "xc7z020": (53200, 106400, 220, 280, 0),
    "xc7a100t": (63400, 126800, 240, 270, 0),
    "xczu7ev": (230400, 460800, 1728, 624, 96),
    "xczu9eg": (274080, 548160, 2520, 1824, 0),
    "xck26": (117120, 234240, 1248, 288, 64),
    "xcku115": (663360, 1326720, 5520, 4320, 0),
    "xcvu9p": (1182240, 2364480, 6840, 4320, 960),
    "xcu250": (1728000, 3456000, 12288, 5376, 1280),
    "10ax115": (854400, 1708800, 1518, 2713, 0),
    "1sg280": (1866240, 3732480, 5760, 11721, 0),
    "agfb014": (974400, 1948800, 4510, 7110, 0),
}


def test_all_parts_carry_their_resources() -> None:
    assert Target.names() == tuple(RESOURCES)
    for name, figures in RESOURCES.items():
        part = Target(part=name).device
        assert (part.lut, part.ff, part.dsp, part.bram18, part.uram) == figures
        assert part.full_name.casefold().startswith(name)
        assert part.vendor == ("AMD" if name.startswith("xc") else "Intel")


def test_full_part_strings_of_known_devices_are_parts() -> None:
    for name in Target.names():
        full = Target(part=name).device.full_name
        assert Target(part=full).device == Target(part=name).device
    other = Target(part="xczu9eg-ffvc900-1-i").device
    assert (other.name, other.full_name, other.dsp) == ("xczu9eg", "xczu9eg-ffvc900-1-i", 2520)
    assert Target(part="XC7Z020").device.name == "xc7z020"
    assert Target(part="xc7z020iclg400-1L").device.name == "xc7z020"
    assert Target(part="10AX115N2F45E1SG").device.full_name == "10AX115N2F45E1SG"


@pytest.mark.parametrize(
    "part",
    ["xczu9e", "xc7z0201", "xcvu9p-", "", "xc7z020; exec rm", "xcu250\n", "10ax115-ffvb1156-2-e"],
)
def test_unknown_part_lists_the_known_ones(part: str) -> None:
    with pytest.raises(TargetError, match=r"unknown part.*Known: xc7z020, xc7a100t"):
        Target(part=part)
    with pytest.raises(TargetError, match="Did you mean xczu9eg"):
        Target.load("xczu9e")


def test_load_takes_a_part_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Target.load("xcu250") == Target(part="xcu250")
    path = tmp_path / "t.toml"
    path.write_text('part = "xck26"\nclock_ns = 4\n')
    assert Target.load(path) == Target(part="xck26", clock_ns=4.0)
    with pytest.raises(TargetError, match=r"none\.toml: no such file"):
        Target.load(tmp_path / "none.toml")
    monkeypatch.chdir(tmp_path)
    Path("plain").write_text("reuse = 3")
    assert Target.load("plain").reuse == 3
    with pytest.raises(TargetError, match="unknown part"):
        Target.load("x" * 5000)


def test_written_target_reads_back_equal() -> None:
    target = Target(
        part="xczu7ev",
        clock_ns=3.3333333333333335,
        layers={"fc*": {"reuse": 4, "strategy": "resource"}, 'a"b': {}},
    )
    assert Target.parse(target.to_toml()) == target
    assert Target.parse(Target().to_toml()) == Target()
    assert Target(clock_ns=5).to_toml() == Target(clock_ns=5.0).to_toml()


def test_all_faults_are_listed_with_their_place() -> None:
    with pytest.raises(TargetError) as caught:
        Target.parse(
            'prat = "x"\nclock_ns = "5"\nio = "serial"\nreuse = 0\nbackend = "vitis"\n'
            '[layers."fc*"]\nreuse = true\nstrateg = "resource"\n',
            "t.toml",
        )
    assert str(caught.value).splitlines() == [
        "t.toml: prat: unknown key. Did you mean part? "
        "Allowed: part, clock_ns, io, strategy, reuse, backend, kernel, layers",
        't.toml: clock_ns: required a number, got "5" (text)',
        "t.toml: io: required 'parallel' or 'stream', got \"serial\" (text)",
        "t.toml: reuse: required greater than or equal to 1, got 0 (an integer)",
        "t.toml: backend: required 'Vitis', 'Vivado', 'Quartus', 'Catapult' or 'oneAPI', "
        'got "vitis" (text)',
        't.toml: layers."fc*": strateg: unknown key. Did you mean strategy? '
        "Allowed: strategy, reuse, kernel",
        't.toml: layers."fc*".reuse: required an integer, got true (a truth value)',
    ]


@pytest.mark.parametrize("clock", [0, -5, 0.1, 1e6, float("nan"), float("inf"), 10**400])
def test_senseless_clock_is_refused(clock: Any) -> None:
    with pytest.raises(TargetError, match="clock_ns: required"):
        Target(clock_ns=clock)


def test_python_arguments_are_judged_like_toml() -> None:
    with pytest.raises(TargetError, match='reuse: required an integer, got "4"'):
        Target(reuse="4")  # type: ignore[arg-type]
    with pytest.raises(TargetError, match=r"reuse: required an integer"):
        Target(reuse=object())  # type: ignore[arg-type]
    with pytest.raises(TargetError, match="part: required text"):
        Target(part=None)  # type: ignore[arg-type]


def test_layer_settings_come_from_the_last_matching_pattern() -> None:
    target = Target(reuse=2, layers={"fc*": {"reuse": 4}, "fc2": {"strategy": "resource"}})
    assert target.resolve("conv") == LayerSettings("latency", 2)
    assert target.resolve("fc1") == LayerSettings("latency", 4)
    assert target.resolve("fc2") == LayerSettings("resource", 4)
    with pytest.raises(TargetError, match=r"named fc2\. Did you mean fc1\? Layers: fc1, c"):
        target.require_layers(["fc1", "conv"])
    target.require_layers(["fc1", "conv"], ["fc2"])


def test_a_kernel_is_chosen_for_all_layers_or_some() -> None:
    target = Target.parse('kernel = "sparse"\n[layers.head]\nkernel = "dense"')
    assert target.resolve("fc") == LayerSettings("latency", 1, "sparse")
    assert target.resolve("head").kernel == "dense"
    assert Target().kernel == "auto"
    with pytest.raises(TargetError, match="kernel: required 'auto', 'dense', 'sparse'"):
        Target(kernel="coo")  # type: ignore[arg-type]


def test_unknown_keywords_are_errors_with_close_names() -> None:
    with pytest.raises(TargetError, match=r"clock: unknown key. Did you mean clock_ns\?"):
        Target(clock=5)  # type: ignore[call-arg]
    with pytest.raises(RecipeError, match=r"wieghts: unknown key. Did you mean weights\?"):
        Quantize(wieghts=3)  # type: ignore[call-arg]


def test_caller_keeps_its_own_layers() -> None:
    layers: dict[str, Any] = {"fc*": {"reuse": 4}}
    target = Target(layers=layers)
    layers["fc*"]["reuse"] = 8
    assert target.resolve("fc1").reuse == 4
