// Types and pragmas of Intel's and Siemens' tools, for fxloom_kernels.h: ac_fixed and ac_int.
#ifndef FXLOOM_TYPES_H_
#define FXLOOM_TYPES_H_

// Every tool has ac_fixed and ac_int elsewhere; hls4ml's header knows where.
#include "../defines.h"

// They stand before a loop.
#if defined(__INTELFPGA_COMPILER__)
#define FXLOOM_UNROLL _Pragma("unroll")
#define FXLOOM_PIPELINE _Pragma("ii 1")
#elif defined(SYCL_LANGUAGE_VERSION)
#define FXLOOM_UNROLL _Pragma("unroll")
#define FXLOOM_PIPELINE [[intel::initiation_interval(1)]]
#else
#define FXLOOM_UNROLL _Pragma("hls_unroll yes")
#define FXLOOM_PIPELINE _Pragma("hls_pipeline_init_interval 1")
#endif

namespace fxloom {

template <int W> using int_t = ac_int<W, true>;
template <int W> using uint_t = ac_int<W, false>;

// The integer type of a fixed-point type's mantissas.
template <class T> struct mantissa {};
template <int W, int I, bool S, ac_q_mode Q, ac_o_mode O> struct mantissa<ac_fixed<W, I, S, Q, O> > {
    typedef ac_int<W, S> type;
};

// Constants are arrays of builtin integers; M is the narrowest integer type that holds them.
template <class M, class T> struct reader {
    static M read(const T &x) { return M(x); }
};
template <class M, int W, int I, bool S, ac_q_mode Q, ac_o_mode O>
struct reader<M, ac_fixed<W, I, S, Q, O> > {
    static M read(const ac_fixed<W, I, S, Q, O> &x) { return M(x.template slc<W>(0)); }
};

template <class T> void set_mantissa(T &x, const typename mantissa<T>::type &m) {
    x.set_slc(0, m);
}

} // namespace fxloom

#endif
