// Kernels of fxloom: the operations that hls4ml has no exact layer for.
//
// Every kernel works on mantissas, the integers inside ap_fixed or ac_fixed, so that no rounding or
// saturation of those headers takes part; only the declared lossy operations lose anything. Arrays
// are flat, row-major and channels-last. A CONFIG gives static sizes, the integer type of every
// argument (a_t, b_t, ...) and index functions, which are constants once the loops are unrolled.
// Synthesizable C++11: static bounds, no dynamic memory. What differs between the vendors' types and
// pragmas is in fxloom_types.h; a left shift keeps the width with both kinds of integers.
#ifndef FXLOOM_KERNELS_H_
#define FXLOOM_KERNELS_H_

#include "fxloom_types.h"

namespace fxloom {

// ---- mantissas -------------------------------------------------------------------------------

// The mantissa of x as integer type M.
template <class M, class T> M read(const T &x) {
    #pragma HLS INLINE
    return reader<M, T>::read(x);
}

// The fixed-point value whose mantissa is the low bits of m.
template <class T, class M> T write(const M &m) {
    #pragma HLS INLINE
    T x;
    set_mantissa(x, typename mantissa<T>::type(m));
    return x;
}

// ---- rearranging: shift, reshape, transpose, pad, copy, concat -----------------------------------

// res[i] = a[source(i)], zero where source(i) is negative.
template <class CONFIG, class A, class R> void gather(const A a[CONFIG::n_in], R res[CONFIG::n_out]) {
    #pragma HLS PIPELINE
    FXLOOM_UNROLL
    for (int i = 0; i < CONFIG::n_out; i++) {
        const int from = CONFIG::source(i);
        res[i] = from < 0 ? write<R>(typename CONFIG::a_t(0))
                          : write<R>(read<typename CONFIG::a_t>(a[from]));
    }
}

// res[target(i)] = a[i] << shift: one argument of a concatenation.
template <class CONFIG, class A, class R> void place(const A a[CONFIG::n_in], R res[CONFIG::n_out]) {
    #pragma HLS INLINE
    FXLOOM_UNROLL
    for (int i = 0; i < CONFIG::n_in; i++) {
        #pragma HLS UNROLL
        const typename CONFIG::wide_t wide = read<typename CONFIG::a_t>(a[i]);
        res[CONFIG::target(i)] = write<R>(typename CONFIG::wide_t(wide << CONFIG::shift));
    }
}

// ---- elementwise, broadcasting ---------------------------------------------------------------

struct op_add {
    template <class T> static T apply(const T &a, const T &b) { return T(a + b); }
};
struct op_sub {
    template <class T> static T apply(const T &a, const T &b) { return T(a - b); }
};
struct op_max {
    template <class T> static T apply(const T &a, const T &b) { return a > b ? a : b; }
};
struct op_min {
    template <class T> static T apply(const T &a, const T &b) { return a < b ? a : b; }
};

// res[i] = op(a << shift_a, b << shift_b); wide_t holds both.
template <class CONFIG, class A, class B, class R>
void elementwise(const A a[CONFIG::n_a], const B b[CONFIG::n_b], R res[CONFIG::n_out]) {
    #pragma HLS PIPELINE
    FXLOOM_UNROLL
    for (int i = 0; i < CONFIG::n_out; i++) {
        typename CONFIG::wide_t left = read<typename CONFIG::a_t>(a[CONFIG::source_a(i)]);
        typename CONFIG::wide_t right = read<typename CONFIG::b_t>(b[CONFIG::source_b(i)]);
        left <<= CONFIG::shift_a;
        right <<= CONFIG::shift_b;
        res[i] = write<R>(CONFIG::op::apply(left, right));
    }
}

template <class CONFIG, class A, class B, class R>
void multiply(const A a[CONFIG::n_a], const B b[CONFIG::n_b], R res[CONFIG::n_out]) {
    #pragma HLS PIPELINE
    FXLOOM_UNROLL
    for (int i = 0; i < CONFIG::n_out; i++) {
        const typename CONFIG::a_t left = read<typename CONFIG::a_t>(a[CONFIG::source_a(i)]);
        const typename CONFIG::b_t right = read<typename CONFIG::b_t>(b[CONFIG::source_b(i)]);
        res[i] = write<R>(left * right);
    }
}

// ---- sums ------------------------------------------------------------------------------------

// res[i] = sum of a[source(i, k)] over k. sum_t holds the result; partial sums may wrap, which
// cannot change it.
template <class CONFIG, class A, class R>
void reduce_sum(const A a[CONFIG::n_in], R res[CONFIG::n_out]) {
    #pragma HLS PIPELINE
    FXLOOM_UNROLL
    for (int i = 0; i < CONFIG::n_out; i++) {
        typename CONFIG::sum_t sum = 0;
        FXLOOM_UNROLL
        for (int k = 0; k < CONFIG::n_terms; k++) {
            sum += read<typename CONFIG::a_t>(a[CONFIG::source(i, k)]);
        }
        res[i] = write<R>(sum);
    }
}

// x[rows, n_in] times w[n_in, n_out].
template <class CONFIG, class A, class W, class R>
void matmul(const A a[CONFIG::rows * CONFIG::n_in], const W w[CONFIG::n_in * CONFIG::n_out],
            R res[CONFIG::rows * CONFIG::n_out]) {
    #pragma HLS ARRAY_PARTITION variable=w complete
    FXLOOM_PIPELINE
    for (int row = 0; row < CONFIG::rows; row++) {
        #pragma HLS PIPELINE II=CONFIG::reuse
        FXLOOM_UNROLL
        for (int o = 0; o < CONFIG::n_out; o++) {
            #pragma HLS UNROLL
            typename CONFIG::sum_t sum = 0;
            FXLOOM_UNROLL
            for (int k = 0; k < CONFIG::n_in; k++) {
                #pragma HLS UNROLL
                sum += read<typename CONFIG::a_t>(a[row * CONFIG::n_in + k]) *
                       typename CONFIG::w_t(w[k * CONFIG::n_out + o]);
            }
            res[row * CONFIG::n_out + o] = write<R>(sum);
        }
    }
}

// ---- windows ---------------------------------------------------------------------------------

// Images are a[height, width, channels]; of a stream only the last rows are held, and row number
// CONFIG::line(row) of a is row `row` of the image.

// One position of the cross-correlation of a with w[kh, kw, channels / groups, n_out].
template <class CONFIG, class A, class W, class R>
void conv_position(const A *a, const W *w, R *res, int out_row, int out_column) {
    #pragma HLS INLINE
    const int top = out_row * CONFIG::stride_height - CONFIG::pad_top;
    const int left = out_column * CONFIG::stride_width - CONFIG::pad_left;
    FXLOOM_UNROLL
    for (int o = 0; o < CONFIG::n_out; o++) {
        #pragma HLS UNROLL
        const int first = o / (CONFIG::n_out / CONFIG::groups) * CONFIG::per_group;
        typename CONFIG::sum_t sum = 0;
        FXLOOM_UNROLL
        for (int kh = 0; kh < CONFIG::kernel_height; kh++) {
            #pragma HLS UNROLL
            FXLOOM_UNROLL
            for (int kw = 0; kw < CONFIG::kernel_width; kw++) {
                #pragma HLS UNROLL
                const int row = top + kh * CONFIG::dilation_height;
                const int column = left + kw * CONFIG::dilation_width;
                const bool inside =
                    row >= 0 && row < CONFIG::height && column >= 0 && column < CONFIG::width;
                const int start = (CONFIG::line(row) * CONFIG::width + column) * CONFIG::channels;
                FXLOOM_UNROLL
                for (int k = 0; k < CONFIG::per_group; k++) {
                    #pragma HLS UNROLL
                    typename CONFIG::a_t x = 0;
                    if (inside) x = read<typename CONFIG::a_t>(a[start + first + k]);
                    const int tap = (kh * CONFIG::kernel_width + kw) * CONFIG::per_group + k;
                    sum += x * typename CONFIG::w_t(w[tap * CONFIG::n_out + o]);
                }
            }
        }
        res[o] = write<R>(sum);
    }
}

template <class CONFIG, class A, class W, class R>
void conv(const A a[CONFIG::height * CONFIG::width * CONFIG::channels],
          const W w[CONFIG::kernel_height * CONFIG::kernel_width * CONFIG::per_group * CONFIG::n_out],
          R res[CONFIG::out_height * CONFIG::out_width * CONFIG::n_out]) {
    #pragma HLS ARRAY_PARTITION variable=w complete
    FXLOOM_PIPELINE
    for (int position = 0; position < CONFIG::out_height * CONFIG::out_width; position++) {
        #pragma HLS PIPELINE II=CONFIG::reuse
        conv_position<CONFIG>(a, w, res + position * CONFIG::n_out, position / CONFIG::out_width,
                              position % CONFIG::out_width);
    }
}

struct pool_sum {
    template <class T> static T combine(const T &sum, const T &x, bool) { return T(sum + x); }
};
struct pool_max {
    template <class T> static T combine(const T &best, const T &x, bool first) {
        return first || x > best ? x : best;
    }
};

// One position of the sum or maximum over windows of a; padding takes no part.
template <class CONFIG, class A, class R>
void pool_position(const A *a, R *res, int out_row, int out_column) {
    #pragma HLS INLINE
    const int top = out_row * CONFIG::stride_height - CONFIG::pad_top;
    const int left = out_column * CONFIG::stride_width - CONFIG::pad_left;
    FXLOOM_UNROLL
    for (int c = 0; c < CONFIG::channels; c++) {
        #pragma HLS UNROLL
        typename CONFIG::sum_t result = 0;
        bool first = true;
        FXLOOM_UNROLL
        for (int kh = 0; kh < CONFIG::kernel_height; kh++) {
            #pragma HLS UNROLL
            FXLOOM_UNROLL
            for (int kw = 0; kw < CONFIG::kernel_width; kw++) {
                #pragma HLS UNROLL
                const int row = top + kh * CONFIG::dilation_height;
                const int column = left + kw * CONFIG::dilation_width;
                if (row >= 0 && row < CONFIG::height && column >= 0 && column < CONFIG::width) {
                    const int start =
                        (CONFIG::line(row) * CONFIG::width + column) * CONFIG::channels;
                    const typename CONFIG::sum_t x = read<typename CONFIG::a_t>(a[start + c]);
                    result = CONFIG::kind::combine(result, x, first);
                    first = false;
                }
            }
        }
        res[c] = write<R>(result);
    }
}

template <class CONFIG, class A, class R>
void pool(const A a[CONFIG::height * CONFIG::width * CONFIG::channels],
          R res[CONFIG::out_height * CONFIG::out_width * CONFIG::channels]) {
    FXLOOM_PIPELINE
    for (int position = 0; position < CONFIG::out_height * CONFIG::out_width; position++) {
        #pragma HLS PIPELINE II=1
        pool_position<CONFIG>(a, res + position * CONFIG::channels, position / CONFIG::out_width,
                              position % CONFIG::out_width);
    }
}

// ---- rounding and fitting ----------------------------------------------------------------------

// AMD UG1399's modes, as the program declares them.
enum rounding_mode { TRN, TRN_ZERO, RND, RND_ZERO, RND_INF, RND_MIN_INF, RND_CONV };
// CLAMP is SAT and SAT_SYM: they differ in the lowest value only.
enum overflow_mode { WRAP, CLAMP, ZERO };

// Whether a floored quotient goes up by one. rest is compared with what is missing to the next
// integer; odd and negative are of quotient and dividend.
template <int ROUNDING> bool goes_up(bool zero, bool above, bool tie, bool odd, bool negative) {
    #pragma HLS INLINE
    if (ROUNDING == TRN) return false;
    if (ROUNDING == TRN_ZERO) return negative && !zero;
    if (ROUNDING == RND) return above || tie;
    if (ROUNDING == RND_MIN_INF) return above;
    if (ROUNDING == RND_ZERO) return above || (tie && negative);
    if (ROUNDING == RND_INF) return above || (tie && !negative);
    return above || (tie && odd);
}

template <class CONFIG, class R, class T> R fit(const T &x) {
    #pragma HLS INLINE
    if (CONFIG::overflow != WRAP) {
        const T lowest = typename CONFIG::limit_t(CONFIG::lowest);
        const T highest = typename CONFIG::limit_t(CONFIG::highest);
        if (x > highest) return write<R>(CONFIG::overflow == ZERO ? T(0) : highest);
        if (x < lowest) return write<R>(CONFIG::overflow == ZERO ? T(0) : lowest);
    }
    return write<R>(typename CONFIG::to_t(x));
}

// Drop bits (or append zeros), rounding once, then fit. work_t holds the shifted value and limits.
template <class CONFIG, class A, class R>
void requantize(const A a[CONFIG::n_out], R res[CONFIG::n_out]) {
    #pragma HLS PIPELINE
    typedef typename CONFIG::work_t work_t;
    FXLOOM_UNROLL
    for (int i = 0; i < CONFIG::n_out; i++) {
        work_t x = read<typename CONFIG::a_t>(a[i]);
        const bool negative = x < 0;
        x <<= CONFIG::appended;
        if (CONFIG::dropped > 0) {
            const work_t floored = x >> CONFIG::dropped;
            const work_t rest = x - work_t(floored << CONFIG::dropped);
            const work_t half = work_t(1) << (CONFIG::dropped > 0 ? CONFIG::dropped - 1 : 0);
            const bool up = goes_up<CONFIG::rounding>(rest == 0, rest > half, rest == half,
                                                      floored[0], negative);
            x = up ? work_t(floored + 1) : floored;
        }
        res[i] = fit<CONFIG, R>(x);
    }
}

// a / d, rounded once, then fitted; d are positive constants.
template <class CONFIG, class A, class D, class R>
void divide(const A a[CONFIG::n_out], const D d[CONFIG::n_b], R res[CONFIG::n_out]) {
    #pragma HLS PIPELINE
    typedef typename CONFIG::work_t work_t;
    FXLOOM_UNROLL
    for (int i = 0; i < CONFIG::n_out; i++) {
        work_t x = read<typename CONFIG::a_t>(a[i]);
        const bool negative = x < 0;
        x <<= CONFIG::appended;
        work_t divisor = typename CONFIG::b_t(d[CONFIG::source_b(i)]);
        divisor <<= CONFIG::dropped;
        work_t floored = x / divisor;
        work_t rest = x - work_t(floored * divisor);
        if (rest < 0) { // C++ divides toward zero
            floored -= 1;
            rest += divisor;
        }
        const work_t missing = divisor - rest;
        const bool up = goes_up<CONFIG::rounding>(rest == 0, rest > missing, rest == missing,
                                                  floored[0], negative);
        res[i] = fit<CONFIG, R>(up ? work_t(floored + 1) : floored);
    }
}

// ---- C simulation ------------------------------------------------------------------------------

#ifndef __SYNTHESIS__
// Sets weights from mantissas when the program starts: exact, and quick to compile.
struct set_weights {
    template <class T, class M> set_weights(T *weights, const M *mantissas, int count) {
        for (int i = 0; i < count; i++) weights[i] = write<T>((long long)mantissas[i]);
    }
};

template <class T> long long to_integer(const T &x) {
    return read<typename mantissa<T>::type>(x).to_int64();
}
#endif

} // namespace fxloom

#include "fxloom_choosing.h"
#ifdef FXLOOM_STREAMS
#include "fxloom_streams.h"
#endif
#include "fxloom_sparse.h"
#include "fxloom_huffman.h"
#include "fxloom_codebook.h"
#include "fxloom_circulant.h"
#include "fxloom_engines.h"
#include "fxloom_tables.h"

#endif
