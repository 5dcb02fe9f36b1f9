// Batch driver of the C simulation: reads and writes int64 mantissas, sample after sample.
//
// Usage: driver INPUTS OUTPUTS COUNT. Prints the number of finished samples now and then.
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <vector>

// One translation unit: the headers cost most of the compile time.
#include FXLOOM_TOP
#include "fxloom_ports.h"

static int fail(const char *what, const char *path) {
    std::fprintf(stderr, "%s %s\n", what, path);
    return 1;
}

int main(int argc, char **argv) {
    if (argc != 4) return fail("usage:", "driver INPUTS OUTPUTS COUNT");
    std::FILE *inputs = std::fopen(argv[1], "rb");
    if (!inputs) return fail("cannot read", argv[1]);
    std::FILE *outputs = std::fopen(argv[2], "wb");
    if (!outputs) return fail("cannot write", argv[2]);
    const long count = std::atol(argv[3]);
    std::vector<long long> input(FXLOOM_INPUT_LENGTH), output(FXLOOM_OUTPUT_LENGTH);
    std::time_t reported = std::time(NULL);
    for (long sample = 0; sample < count; sample++) {
        if (std::fread(&input[0], 8, input.size(), inputs) != input.size())
            return fail("too few samples in", argv[1]);
        const std::string complaint = fxloom_run_sample(&input[0], &output[0]);
        if (!complaint.empty()) return fail("streams:", complaint.c_str());
        if (std::fwrite(&output[0], 8, output.size(), outputs) != output.size())
            return fail("cannot write", argv[2]);
        const std::time_t now = std::time(NULL);
        if (now != reported) {
            reported = now;
            std::printf("%ld\n", sample + 1);
            std::fflush(stdout);
        }
    }
    if (std::fclose(outputs) != 0) return fail("cannot write", argv[2]);
    return 0;
}
