// Products that need no multiplier, for hls4ml's layers; ap_fixed only.
#ifndef FXLOOM_PRODUCTS_H_
#define FXLOOM_PRODUCTS_H_

#include "ap_fixed.h"
#include "ap_int.h"
#include "nnet_mult.h"

namespace fxloom {

// a * w where w is zero or a power of two, with its sign: one of the shifted values of a, and a
// negation. Binary, ternary and power-of-two weights are such.
template <class x_T, class w_T> class power_product : public nnet::product::Product {
  public:
    static auto product(x_T a, w_T w) -> decltype(a * w) {
        #pragma HLS INLINE
        typedef decltype(a * w) R;
        ap_int<R::width + 1> value = 0; // a's mantissa
        value = mantissa_of(a);
        const ap_int<w_T::width + 1> weight = mantissa_of(w);
        const bool negative = weight < 0;
        const ap_uint<w_T::width> magnitude =
            negative ? ap_int<w_T::width + 1>(-weight) : ap_int<w_T::width + 1>(weight);
        ap_int<R::width + 1> sum = 0;
        for (int k = 0; k < w_T::width; k++) {
            #pragma HLS UNROLL
            if (magnitude[k]) { // one k at most
                sum |= ap_int<R::width + 1>(value << k);
            }
        }
        const ap_int<R::width + 1> negated = -sum;
        const ap_int<R::width> bits = negative ? negated : sum;
        R result;
        result.V = bits.V;
        return result;
    }

  private:
    // The mantissa of a fixed-point number, with room for its sign.
    template <int W, int I, ap_q_mode Q, ap_o_mode O, int N>
    static ap_int<W + 1> mantissa_of(const ap_fixed<W, I, Q, O, N> &x) {
        ap_int<W> m;
        m.V = x.V;
        return m;
    }
    template <int W, int I, ap_q_mode Q, ap_o_mode O, int N>
    static ap_int<W + 1> mantissa_of(const ap_ufixed<W, I, Q, O, N> &x) {
        ap_uint<W> m;
        m.V = x.V;
        return m;
    }
};

} // namespace fxloom

#endif
