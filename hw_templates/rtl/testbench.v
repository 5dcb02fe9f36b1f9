// Compares a product with the integers that it must give, sample by sample.
//
// ports.vh defines the module's name, the bits of its ports and how many samples there are. Prints
// the first sample that differs, and at the end, whatever happened, how many were compared.
`timescale 1ns / 1ps
`include "ports.vh"

module testbench;
    reg [`FXLOOM_X_BITS-1:0] inputs [0:`FXLOOM_SAMPLES-1];
    reg [`FXLOOM_Y_BITS-1:0] expected [0:`FXLOOM_SAMPLES-1];
    reg [`FXLOOM_X_BITS-1:0] x;
    wire [`FXLOOM_Y_BITS-1:0] y;
    integer sample;
    integer different;

    `FXLOOM_TOP product (.x(x), .y(y));

    initial begin
        $readmemh("inputs.hex", inputs);
        $readmemh("expected.hex", expected);
        different = 0;
        for (sample = 0; sample < `FXLOOM_SAMPLES; sample = sample + 1) begin
            x = inputs[sample];
            #1;
            if (y !== expected[sample]) begin
                if (different == 0) $display("FXLOOM FIRST %0d %h", sample, y);
                different = different + 1;
            end
        end
        $display("FXLOOM COMPARED %0d DIFFERENT %0d", sample, different);
        $finish;
    end
endmodule
