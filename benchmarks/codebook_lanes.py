"""LUTs of one lane of the codebook kernel, counted as the estimate does and synthesised by yosys.

`python -m benchmarks.codebook_lanes`; needs yosys (0.23 for the published figures) in PATH.
Products first: an index that is read chooses one of the products of an input (8-bit inputs and
weights), which is added to a sum of 24 bits. Sums first: the step chooses one of as many inputs as
there are steps, which is added to a sum of 12 bits. Choices are registered; of synthesis with and
without wide multiplexers the better. UltraScale+, before placement.
"""

from benchmarks.sparse_operands import luts
from fxloom.kernels.codebook import chosen_luts, wired_luts

DATA, PRODUCT, SUM, TOTAL = 8, 16, 12, 24
CHOICES = (2, 4, 8, 16, 32, 64)


def lane(choices: int, bits: int, total: int) -> str:
    """Verilog of a lane that adds up one of so many numbers of so many bits a cycle."""
    last = (choices - 1).bit_length() - 1
    cases = "\n".join(f"{k}: chosen <= x[{k * bits} +: {bits}];" for k in range(choices))
    return (
        f"module lane(input clk, input first, input [{last}:0] index, "
        f"input [{choices * bits - 1}:0] x, output reg signed [{total - 1}:0] sum);\n"
        f"reg signed [{bits - 1}:0] chosen;\n"
        f"wire signed [{total - 1}:0] before = first ? 0 : sum;\n"
        f"always @(posedge clk) begin case (index)\n{cases}\ndefault: chosen <= {bits}'bx;\n"
        "endcase\nsum <= before + chosen;\nend\nendmodule\n"
    )


def main() -> None:
    print("one of  products first: counted  yosys  sums first: counted  yosys")
    for choices in CHOICES:
        found = [
            min(luts(lane(choices, *bits), options) for options in ("", "-widemux 5"))
            for bits in ((PRODUCT, TOTAL), (DATA, SUM))
        ]
        products, sums = chosen_luts(choices, PRODUCT) + TOTAL, wired_luts(choices, DATA) + SUM
        print(
            f"{choices:6}  {products:23.0f}  {found[0]:5}  {sums:19.0f}  {found[1]:5}", flush=True
        )


if __name__ == "__main__":
    main()
