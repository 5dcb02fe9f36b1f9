"""The driver's own hls::stream against the one that is in the project, call by call."""

import shutil
import subprocess
from pathlib import Path

import pytest

from fxloom.backends.hls4ml.csim import STREAMS
from fxloom.backends.hls4ml.writer import TEMPLATES, template

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")

WALK = """
// Prints every value that is read, and what the stream says of itself afterwards.
template <template <class> class STREAM> static void walk(unsigned seed, int calls) {
    STREAM<long> named(std::string("a")), other(std::string("b"));
    STREAM<long> none(std::string("none")), one(std::string("one"));
    one.write(1);
    STREAM<long> *const streams[2] = {&named, &other};
    for (int i = 0; i < calls; i++) {
        seed = seed * 1664525u + 1013904223u;
        STREAM<long> &s = *streams[seed >> 31];
        // Longer and shorter phases: a ring that turns, grows while turned, and runs empty.
        const unsigned write = (i / 300) % 3 == 0 ? 6 : (i / 300) % 3 == 1 ? 2 : 4;
        long value = -1;
        bool said = true;
        if ((seed >> 8) % 8 < write) {
            if ((seed >> 12) % 3 == 0) s.write(i);
            else if ((seed >> 12) % 3 == 1) s << i;
            else said = s.write_nb(i);
        } else if ((seed >> 12) % 4 == 0) value = s.read();
        else if ((seed >> 12) % 4 == 1) s.read(value);
        else if ((seed >> 12) % 4 == 2) s >> value;
        else said = s.read_nb(value);
        std::cout << value << ' ' << said << s.empty() << s.full() << ' ' << s.size() << std::endl;
    }
}

template <class T> class ours : public simulated::stream<T> {
  public:
    explicit ours(const std::string &name) : simulated::stream<T>(name) {}
};
template <class T> class theirs : public hls::stream<T> {
  public:
    explicit theirs(const std::string &name) : hls::stream<T>(name) {}
};

int main(int argc, char **argv) {
    for (unsigned seed = 1; seed < 5; seed++) {
        if (argv[1][0] == 'o') walk<ours>(seed, 2000);
        else walk<theirs>(seed, 2000);
    }
}
"""


def test_the_drivers_streams_are_those_of_the_project(tmp_path: Path) -> None:
    text = template(STREAMS)
    guard = "X_HLS_STREAM_SIM_H"
    assert text.count("namespace hls {") == text.count(f"#define {guard}") == 1
    ours = text.replace("namespace hls {", "namespace simulated {")
    source = f'{ours}\n#undef {guard}\n#include "hls_stream.h"\n{WALK}'
    (tmp_path / "walk.cpp").write_text(source)
    headers = TEMPLATES / "vivado" / "ap_types"
    subprocess.run(
        ["g++", "-std=c++14", f"-I{headers}", "walk.cpp", "-o", "walk"], cwd=tmp_path, check=True
    )
    said = [
        subprocess.run([tmp_path / "walk", who], capture_output=True, text=True, check=True).stdout
        for who in ("ours", "theirs")
    ]
    assert said[0] == said[1]
    assert "'none'" not in said[0]
    for part in (
        "'one' contains leftover data,",
        "'a' is read while empty,",
        "'b' contains leftover data,",
        " 110 0\n",
        " 100 100\n",
    ):
        assert part in said[0], part
