// Where a oneAPI project runs: on the emulator, the simulator or a board, as it was compiled.
#ifndef FXLOOM_QUEUE_H_
#define FXLOOM_QUEUE_H_

#include <sycl/ext/intel/fpga_extensions.hpp>
#if (__INTEL_CLANG_COMPILER < 20250000)
#include <sycl/ext/intel/prototype/interfaces.hpp>
#endif

#include "exception_handler.hpp"

static sycl::queue &fxloom_queue() {
#if FPGA_SIMULATOR
    auto selector = sycl::ext::intel::fpga_simulator_selector_v;
#elif FPGA_HARDWARE
    auto selector = sycl::ext::intel::fpga_selector_v;
#else
    auto selector = sycl::ext::intel::fpga_emulator_selector_v;
#endif
    static sycl::queue queue(selector, fpga_tools::exception_handler);
    return queue;
}

#endif
