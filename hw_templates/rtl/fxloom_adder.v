// y = (a << A_SHIFT) + (b << B_SHIFT), or the difference where SUBTRACT.
//
// The low LOW bits are those of a where B_SHIFT >= LOW, else of b: only one operand has them. The
// result is exact in WIDTH bits. An adder of its own in the netlist: what synthesis flattens it
// takes apart into logic that needs more LUTs than carry chains do.
(* keep_hierarchy *)
module fxloom_adder #(
    parameter A = 1,
    parameter A_SIGNED = 0,
    parameter A_SHIFT = 0,
    parameter B = 1,
    parameter B_SIGNED = 0,
    parameter B_SHIFT = 0,
    parameter SUBTRACT = 0,
    parameter LOW = 0,
    parameter WIDTH = 1
) (
    input [A-1:0] a,
    input [B-1:0] b,
    output [WIDTH-1:0] y
);
    wire signed [A:0] a_signed = {A_SIGNED ? a[A-1] : 1'b0, a};
    wire signed [B:0] b_signed = {B_SIGNED ? b[B-1] : 1'b0, b};
    wire signed [WIDTH-1:0] left = a_signed <<< A_SHIFT;
    wire signed [WIDTH-1:0] right = b_signed <<< B_SHIFT;
    wire [WIDTH-1:LOW] high_left = left[WIDTH-1:LOW];
    wire [WIDTH-1:LOW] high_right = right[WIDTH-1:LOW];
    generate
        if (SUBTRACT) begin : difference
            assign y[WIDTH-1:LOW] = high_left - high_right;
        end else begin : sum
            assign y[WIDTH-1:LOW] = high_left + high_right;
        end
        if (LOW > 0) begin : wires
            if (B_SHIFT >= LOW) begin : of_a
                assign y[LOW-1:0] = left[LOW-1:0];
            end else begin : of_b
                assign y[LOW-1:0] = right[LOW-1:0];
            end
        end
    endgenerate
endmodule
