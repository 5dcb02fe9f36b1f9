// Self-checking testbench of an fxloom project, for C simulation and C/RTL co-simulation.
//
// tb_data/inputs.dat and tb_data/expected.dat: one sample a line, integers (mantissas of the ports'
// fixed-point types), all ports one after another. The expected ones come from fxloom's simulator.
// Prints one line, PASS or FAIL, and returns 1 after the first difference. An argument is the folder
// of the samples instead of tb_data.
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "fxloom_ports.h"

#ifndef CCS_MAIN // Catapult has macros of its own
#define CCS_MAIN(count, words) int main(count, words)
#define CCS_RETURN(status) return status
#endif

#ifdef RTL_SIM
static const char *const RESULTS = "/rtl_cosim_results.log";
#else
static const char *const RESULTS = "/csim_results.log";
#endif

static bool read_sample(std::ifstream &file, std::vector<long long> &sample) {
    for (size_t i = 0; i < sample.size(); i++) {
        if (!(file >> sample[i])) return false;
    }
    return true;
}

CCS_MAIN(int argc, char *argv[]) {
    const std::string folder = argc > 1 ? argv[1] : "tb_data";
    std::ifstream inputs((folder + "/inputs.dat").c_str());
    std::ifstream expected((folder + "/expected.dat").c_str());
    std::ofstream results((folder + RESULTS).c_str());
    if (!inputs || !expected || !results) {
        std::cout << "FAIL: cannot open inputs.dat, expected.dat or " << RESULTS + 1 << " in "
                  << folder << std::endl;
        CCS_RETURN(1);
    }
    std::vector<long long> input(FXLOOM_INPUT_LENGTH), output(FXLOOM_OUTPUT_LENGTH);
    std::vector<long long> wanted(FXLOOM_OUTPUT_LENGTH);
    int samples = 0;
    for (; samples < FXLOOM_TB_SAMPLES && read_sample(inputs, input); samples++) {
        if (!read_sample(expected, wanted)) break;
        const std::string complaint = fxloom_run_sample(&input[0], &output[0]);
        if (!complaint.empty()) {
            std::cout << "FAIL: sample " << samples << ": " << complaint << std::endl;
            CCS_RETURN(1);
        }
        for (size_t i = 0; i < output.size(); i++) results << output[i] << ' ';
        results << std::endl;
        for (size_t i = 0; i < output.size(); i++) {
            if (output[i] == wanted[i]) continue;
            std::cout << "FAIL: sample " << samples << ", output " << i << ": expected "
                      << wanted[i] << ", got " << output[i] << std::endl;
            CCS_RETURN(1);
        }
    }
    if (samples != FXLOOM_TB_SAMPLES) {
        std::cout << "FAIL: expected " << FXLOOM_TB_SAMPLES << " samples in tb_data, found "
                  << samples << std::endl;
        CCS_RETURN(1);
    }
    std::cout << "PASS: " << samples << " samples, every output equal" << std::endl;
    CCS_RETURN(0);
}
