"""The kernel of products with Huffman-coded weights."""

from collections.abc import Mapping

from fxloom.backends.hls4ml.kernels.core import Kernel, constants, struct, typedef
from fxloom.backends.hls4ml.kernels.matrix import MatrixSite, table
from fxloom.backends.hls4ml.weights import Weights
from fxloom.fixed_point import FixedPoint
from fxloom.huffman import Code
from fxloom.huffman_decoder import tables_of
from fxloom.huffman_layout import HuffmanLayout, lay_out_codes
from fxloom.sparse_layout import index_width


def render_huffman(of: MatrixSite) -> tuple[Mapping[str, Weights], Kernel]:
    """A ROM a lane, the tables that decode it, and the different weights."""
    layout = lay_out_codes(of.matrix, of.given.reuse)
    assert layout is not None
    width = index_width(layout.inputs)
    memories = {
        "weight": of.memory(1, layout.values, of.weight),
        "indices": of.memory(2, layout.first, FixedPoint(width, width, False)),
    }
    number, config = of.site.index, of.site.config
    spans, runs, lengths = f"spans{number}", f"runs{number}", layout.runs.symbols.tolist()
    lines = [
        *constants(n_spans=len(layout.ends), n_indices=layout.lanes, index_parts=layout.lanes),
        *constants(n_words=layout.values.size, word_parts=layout.values.size),
        *constants(word=layout.word, address_width=index_width(int(layout.words.max()) + 2)),
        typedef("i_t", f"fxloom::uint_t<{width}>"),
        typedef("product", of.product()),
        typedef("source", f"fxloom::coded_words<{config}>"),
        typedef("weights", f"weight_code{number}"),
        typedef("runs", f"run_code{number}"),
        f"static int run(int number) {{ return {f'{runs}[number]' if lengths else '0'}; }}",
        *_rom_function(layout, number),
        f"static int end(int s) {{ return {spans}_end[s]; }}",
        f"static int output(int s) {{ return {spans}_output[s]; }}",
    ]
    before = [
        table(f"{spans}_end", layout.ends),
        table(f"{spans}_output", layout.outputs),
        *([table(runs, lengths)] if lengths else []),
        *_code(f"weight_code{number}", layout.weights),
        *_code(f"run_code{number}", layout.runs),
        *_roms(layout, number),
    ]
    arrays = [held.name for held in memories.values()]
    return memories, of.kernel("sparse", lines, arrays, *before)


def _code(name: str, code: Code) -> list[str]:
    """What decodes a code: of no bits there is nothing to say."""
    tables = tables_of(code)
    limit, base, before = "0", "0", []
    if tables.longest:
        limit, base = f"{name}_limit[length - 1]", f"{name}_base[length - 1]"
        before = [table(f"{name}_limit", tables.limits), table(f"{name}_base", tables.bases)]
    lines = [
        *constants(longest=tables.longest),
        f"static int limit(int length) {{ return {limit}; }}",
        f"static int base(int length) {{ return {base}; }}",
    ]
    return [*before, struct(name, lines)]


def _roms(layout: HuffmanLayout, number: int) -> list[str]:
    """The lanes' arrays. Simulation reads built-in integers, which compile faster."""
    word = f"rom{number}_t"
    return [
        "#if defined(__SYNTHESIS__) || defined(FXLOOM_LITERALS)",
        typedef(word, f"fxloom::uint_t<{layout.word}>"),
        "#else",
        typedef(word, "unsigned int"),
        "#endif",
        *(
            table(f"rom{number}_{lane}", words, word)
            for lane, words in enumerate(layout.rom())
            if words
        ),
    ]


def _rom_function(layout: HuffmanLayout, number: int) -> list[str]:
    """A word of a lane's ROM, 0 behind its end. Lanes are constants once loops are unrolled."""
    kind = f"fxloom::uint_t<{layout.word}>"
    cases = [
        f"    case {lane}: return at < {words} ? {kind}(rom{number}_{lane}[at]) : {kind}(0);"
        for lane, words in enumerate(layout.words.tolist())
        if words
    ]
    return [
        f"static {kind} rom(int lane, int at) {{",
        "    #pragma HLS INLINE",
        "    switch (lane) {",
        *cases,
        "    default: return 0;",
        "    }",
        "}",
    ]
