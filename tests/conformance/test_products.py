"""Products without a multiplier: every value times every power of two, against `*`."""

import subprocess
from pathlib import Path

from fxloom.backends.hls4ml.writer import TEMPLATES, template

SOURCE = """
#include "fxloom_products.h"
#include <cstdio>

template <class X, class W> int differing() {
    int count = 0;
    for (int m = 0; m < (1 << X::width); m++) {
        for (int n = 0; n < (1 << W::width); n++) {
            X x;
            W w;
            x.range(X::width - 1, 0) = m;
            w.range(W::width - 1, 0) = n;
            const double real = w.to_double();
            const double size = real < 0 ? -real : real;
            double power = 1.0 / 1024;
            while (power < size) power *= 2;
            if (size != 0 && power != size) continue;
            count += fxloom::power_product<X, W>::product(x, w) != x * w;
        }
    }
    return count;
}

int main() {
    int count = differing<ap_fixed<6, 3>, ap_fixed<2, 1> >();
    count += differing<ap_fixed<5, 8>, ap_fixed<7, 2> >();
    count += differing<ap_ufixed<6, -1>, ap_fixed<5, 7> >();
    count += differing<ap_fixed<1, 1>, ap_fixed<1, 1> >();
    count += differing<ap_fixed<4, 2>, ap_ufixed<3, 1> >();
    count += differing<ap_ufixed<4, 2>, ap_ufixed<1, 1> >();
    std::printf("%d\\n", count);
}
"""


def test_every_product_is_that_of_the_multiplier(tmp_path: Path) -> None:
    (tmp_path / "fxloom_products.h").write_text(template("fxloom_products.h"))
    (tmp_path / "main.cpp").write_text(SOURCE)
    vivado = TEMPLATES / "vivado"
    folders = [vivado / "nnet_utils", vivado / "ap_types"]
    includes = [f"-I{folder}" for folder in (tmp_path, *folders)]
    command = ["g++", "-std=c++14", "-w", *includes, "main.cpp", "-o", "main"]
    subprocess.run(command, cwd=tmp_path, check=True)
    run = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "0"
