// Types and pragmas of AMD's tools, for fxloom_kernels.h: ap_fixed and ap_int.
#ifndef FXLOOM_TYPES_H_
#define FXLOOM_TYPES_H_

#include "ap_fixed.h"
#include "ap_int.h"

// There are streams of these types.
#define FXLOOM_STREAMS
// The kernels' own pragmas say it.
#define FXLOOM_UNROLL
#define FXLOOM_PIPELINE

namespace fxloom {

template <int W> using int_t = ap_int<W>;
template <int W> using uint_t = ap_uint<W>;

// The integer type of a fixed-point type's mantissas.
template <class T> struct mantissa {};
template <int W, int I, ap_q_mode Q, ap_o_mode O, int N> struct mantissa<ap_fixed<W, I, Q, O, N> > {
    typedef ap_int<W> type;
};
template <int W, int I, ap_q_mode Q, ap_o_mode O, int N> struct mantissa<ap_ufixed<W, I, Q, O, N> > {
    typedef ap_uint<W> type;
};

// Constants are arrays of builtin integers; M is the narrowest integer type that holds them.
template <class M, class T> struct reader {
    static M read(const T &x) { return M(x); }
};
template <class M, int W, int I, ap_q_mode Q, ap_o_mode O, int N>
struct reader<M, ap_fixed<W, I, Q, O, N> > {
    static M read(const ap_fixed<W, I, Q, O, N> &x) {
        M m;
        m.V = x.V;
        return m;
    }
};
template <class M, int W, int I, ap_q_mode Q, ap_o_mode O, int N>
struct reader<M, ap_ufixed<W, I, Q, O, N> > {
    static M read(const ap_ufixed<W, I, Q, O, N> &x) {
        M m;
        m.V = x.V;
        return m;
    }
};

template <class T> void set_mantissa(T &x, const typename mantissa<T>::type &m) {
    #pragma HLS INLINE
    x.V = m.V;
}

} // namespace fxloom

#endif
