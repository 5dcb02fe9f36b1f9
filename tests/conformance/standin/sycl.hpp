// As much of SYCL, with Intel's extensions for FPGAs, as a project for oneAPI uses, for any C++17
// compiler: tests compile such projects with it where icpx is missing. Kernels run at once, in the
// order in which they are submitted; a pipe that is read while empty throws.
#pragma once

#include <ac_fixed.h>
#include <ac_int.h>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <stdexcept>
#include <vector>

#define SYCL_EXTERNAL
#define SYCL_LANGUAGE_VERSION 202001

namespace sycl {

using exception_list = std::vector<std::exception_ptr>;
struct exception : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class queue {
  public:
    template <class Selector, class Handler> queue(Selector, Handler) {}
    template <class Kernel> void single_task(Kernel kernel) { kernel(); }
    void wait() {}
};

namespace ext::oneapi::experimental {
struct properties_tag {};
template <class... P> struct properties {
    explicit properties(P...) {}
};
} // namespace ext::oneapi::experimental

namespace ext::intel {
struct selector {};
inline selector fpga_emulator_selector_v;

namespace experimental {
template <int> struct ready_latency_t {};
template <int N> inline ready_latency_t<N> ready_latency;
template <class...> struct streaming_interface_t {};
template <class... P> inline streaming_interface_t<P...> streaming_interface;
template <class...> struct pipelined_t {};
template <class... P> inline pipelined_t<P...> pipelined;
template <class> struct task_sequence {};

template <class Name, class T, int32_t capacity = 0, class... Properties> class pipe {
    inline static std::deque<T> data;

  public:
    static void write(const T &value) { data.push_back(value); }
    static T read() {
        if (data.empty()) throw std::runtime_error("a pipe is read while empty");
        const T value = data.front();
        data.pop_front();
        return value;
    }
    static void write(queue &, const T &value) { write(value); }
    static T read(queue &) { return read(); }
};
} // namespace experimental
} // namespace ext::intel

} // namespace sycl
