// Products with matrices of which weights come one after the other from memory (CONFIG::source): every
// weight is a word, the weight itself or its number in a codebook (CONFIG::weight), and either only
// those that are not zero, with the numbers of the inputs that they meet, or all of them; or as in
// fxloom_huffman.h.
//
// A lane is one multiplier with a memory. In each of CONFIG::reuse steps it multiplies a weight by one
// of the CONFIG::n_in values x of a position and adds to its sum. Weights are in the
// order of their outputs; span number s, what a lane adds up for output CONFIG::output(s), ends with
// product CONFIG::end(s) = lane * reuse + step. Positions follow each other without a pause, but for
// one at the beginning of every row of an image.
#ifndef FXLOOM_SPARSE_H_
#define FXLOOM_SPARSE_H_

namespace fxloom {

// ---- products --------------------------------------------------------------------------------

struct any_product {
    template <class X, class W> static auto times(const X &x, const W &w) -> decltype(x * w) {
        #pragma HLS INLINE
        return x * w;
    }
};

// For weights of BITS bits that are zero or a power of two, with a sign: one of the shifted values of
// x, and a negation. WIDTH bits hold the product and its negation.
template <int WIDTH, int BITS> struct shifted_product {
    template <class X, class W> static int_t<WIDTH> times(const X &x, const W &w) {
        #pragma HLS INLINE
        const int_t<BITS + 1> weight = w;
        const bool negative = weight < 0;
        const int_t<BITS + 1> magnitude = negative ? int_t<BITS + 1>(-weight) : weight;
        const int_t<WIDTH> value = x;
        int_t<WIDTH> product = 0;
        FXLOOM_UNROLL
        for (int k = 0; k < BITS; k++) {
            #pragma HLS UNROLL
            if (magnitude[k]) product |= int_t<WIDTH>(value << k);
        }
        return negative ? int_t<WIDTH>(-product) : product;
    }
};

// The values of a position.
template <class CONFIG, class A, class X> void sparse_take(const A *a, X *x) {
    #pragma HLS INLINE
    FXLOOM_UNROLL
    for (int k = 0; k < CONFIG::n_in; k++) {
        #pragma HLS UNROLL
        x[k] = a[k];
    }
}

// ---- one step --------------------------------------------------------------------------------

// The input that a lane multiplies in a step: its own index, or, where all weights are there, the
// one after that of the step before, from the lane's first on.
template <class CONFIG, class I> int sparse_index(const I *indices, int lane, int step) {
    #pragma HLS INLINE
    const typename CONFIG::i_t index = indices[CONFIG::implied ? lane : lane * CONFIG::reuse + step];
    return CONFIG::implied ? (index.to_int() + step) % CONFIG::n_in : index.to_int();
}

// What a lane multiplies in a step. Few steps: indices are constants, and one of `reuse` wires is
// chosen; many: an index is read, or counted, and one of all inputs is chosen.
template <class CONFIG, class X, class I>
typename CONFIG::a_t sparse_operand(const X *x, const I *indices, typename CONFIG::i_t &next,
                                    int lane, int step) {
    #pragma HLS INLINE
    typename CONFIG::a_t value = 0;
    if (CONFIG::wired) {
        FXLOOM_UNROLL
        for (int k = 0; k < CONFIG::reuse; k++) {
            #pragma HLS UNROLL
            const int index = sparse_index<CONFIG>(indices, lane, k);
            if (k == step) value = read<typename CONFIG::a_t>(x[index]);
        }
    } else if (CONFIG::implied) {
        int place = next.to_int();
        if (step == 0) place = sparse_index<CONFIG>(indices, lane, 0);
        next = place == CONFIG::n_in - 1 ? 0 : place + 1;
        value = read<typename CONFIG::a_t>(x[place]);
    } else {
        value = read<typename CONFIG::a_t>(x[sparse_index<CONFIG>(indices, lane, step)]);
    }
    return value;
}

// Where a lane finds its weights: a word in every step.
template <class CONFIG> struct stored_words {
    typedef typename CONFIG::i_t state_t; // the input after the last one

    template <class X, class W, class I>
    static void next(const X *x, const W *w, const I *indices, state_t &state, int lane, int step,
                     typename CONFIG::a_t &value, typename CONFIG::w_t &weight) {
        #pragma HLS INLINE
        value = sparse_operand<CONFIG>(x, indices, state, lane, step);
        weight = CONFIG::weight(w[lane * CONFIG::reuse + step]);
    }
};

// One product of every lane; where a span ends, its sum is kept and the lane begins again.
template <class CONFIG, class X, class W, class I, class T, class S>
void sparse_step(const X *x, const W *w, const I *indices, T *states, S *sums, S *spans, int step) {
    #pragma HLS INLINE
    FXLOOM_UNROLL
    for (int lane = 0; lane < CONFIG::lanes; lane++) {
        #pragma HLS UNROLL
        typename CONFIG::a_t value = 0;
        typename CONFIG::w_t weight = 0;
        CONFIG::source::next(x, w, indices, states[lane], lane, step, value, weight);
        S sum = sums[lane];
        if (step == 0) sum = 0;
        sum += CONFIG::product::times(value, weight);
        sums[lane] = sum;
    }
    FXLOOM_UNROLL
    for (int s = 0; s < CONFIG::n_spans; s++) {
        #pragma HLS UNROLL
        if (step == CONFIG::end(s) % CONFIG::reuse) {
            spans[s] = sums[CONFIG::end(s) / CONFIG::reuse];
            sums[CONFIG::end(s) / CONFIG::reuse] = 0;
        }
    }
}

// What the spans of every output add up to.
template <class CONFIG, class S> void sparse_totals(const S *spans, S *totals) {
    #pragma HLS INLINE
    FXLOOM_UNROLL
    for (int o = 0; o < CONFIG::n_out; o++) {
        #pragma HLS UNROLL
        totals[o] = 0;
    }
    FXLOOM_UNROLL
    for (int s = 0; s < CONFIG::n_spans; s++) {
        #pragma HLS UNROLL
        totals[CONFIG::output(s)] += spans[s];
    }
}

// The outputs of a position: biases and totals, `shift` bits finer, converted once. sum_t holds the
// result; partial sums may wrap, which cannot change it. accum_t has sum_t as its mantissa.
template <class CONFIG, class S, class B, class R>
void with_bias(const S *totals, const B *bias, R *res) {
    #pragma HLS INLINE
    FXLOOM_UNROLL
    for (int o = 0; o < CONFIG::n_out; o++) {
        #pragma HLS UNROLL
        S total = totals[o];
        total <<= CONFIG::shift;
        S offset = typename CONFIG::b_t(bias[o]);
        offset <<= CONFIG::bias_shift;
        total += offset;
        res[o] = R(write<typename CONFIG::accum_t>(total));
    }
}

template <class CONFIG, class S, class B, class R>
void sparse_result(const S *spans, const B *bias, R *res) {
    #pragma HLS INLINE
    S totals[CONFIG::n_out];
    #pragma HLS ARRAY_PARTITION variable=totals complete
    sparse_totals<CONFIG>(spans, totals);
    with_bias<CONFIG>(totals, bias, res);
}

// ---- linear layers ---------------------------------------------------------------------------

// x[rows, n_in] times the matrix, plus a bias.
template <class CONFIG, class A, class W, class I, class B, class R>
void sparse_matmul(const A a[CONFIG::rows * CONFIG::n_in], const W w[CONFIG::n_words],
                   const I indices[CONFIG::n_indices], const B bias[CONFIG::n_out],
                   R res[CONFIG::rows * CONFIG::n_out]) {
    #pragma HLS ARRAY_RESHAPE variable=w block factor=CONFIG::word_parts
    #pragma HLS ARRAY_PARTITION variable=indices block factor=CONFIG::index_parts
    #pragma HLS ARRAY_PARTITION variable=bias complete
    A x[CONFIG::n_in];
    #pragma HLS ARRAY_PARTITION variable=x complete
    typename CONFIG::source::state_t states[CONFIG::lanes];
    #pragma HLS ARRAY_PARTITION variable=states complete
    typename CONFIG::sum_t sums[CONFIG::lanes];
    #pragma HLS ARRAY_PARTITION variable=sums complete
    typename CONFIG::sum_t spans[CONFIG::n_spans];
    #pragma HLS ARRAY_PARTITION variable=spans complete
    for (int row = 0; row < CONFIG::rows; row++) {
        FXLOOM_PIPELINE
        for (int step = 0; step < CONFIG::reuse; step++) {
            #pragma HLS PIPELINE II=1 rewind
            if (step == 0) sparse_take<CONFIG>(a + row * CONFIG::n_in, x);
            sparse_step<CONFIG>(x, w, indices, states, sums, spans, step);
            if (step == CONFIG::reuse - 1) {
                sparse_result<CONFIG>(spans, bias, res + row * CONFIG::n_out);
            }
        }
    }
}

// ---- convolutions ----------------------------------------------------------------------------

// In every step some of the values of a window, kernel position by kernel position, zero where that
// lies outside: a memory gives few values at a time, so a window comes in during the one before.
template <class CONFIG, class A, class X>
void sparse_prefetch(const A *a, X *next, int out_row, int out_column, int step) {
    #pragma HLS INLINE
    FXLOOM_UNROLL
    for (int t = 0; t < CONFIG::taps_per_step; t++) {
        #pragma HLS UNROLL
        const int tap = step * CONFIG::taps_per_step + t;
        const int row = out_row * CONFIG::stride_height - CONFIG::pad_top +
                        tap / CONFIG::kernel_width * CONFIG::dilation_height;
        const int column = out_column * CONFIG::stride_width - CONFIG::pad_left +
                           tap % CONFIG::kernel_width * CONFIG::dilation_width;
        const bool inside =
            row >= 0 && row < CONFIG::height && column >= 0 && column < CONFIG::width;
        const int start = (CONFIG::line(row) * CONFIG::width + column) * CONFIG::channels;
        if (tap < CONFIG::kernel_height * CONFIG::kernel_width) {
            FXLOOM_UNROLL
            for (int k = 0; k < CONFIG::channels; k++) {
                #pragma HLS UNROLL
                X value = 0;
                if (inside) value = a[start + k];
                next[tap * CONFIG::channels + k] = value;
            }
        }
    }
}

// The cross-correlation of an image with the matrix, plus a bias.
template <class CONFIG, class A, class W, class I, class B, class R>
void sparse_conv(const A a[CONFIG::height * CONFIG::width * CONFIG::channels],
                 const W w[CONFIG::n_words],
                 const I indices[CONFIG::n_indices], const B bias[CONFIG::n_out],
                 R res[CONFIG::out_height * CONFIG::out_width * CONFIG::n_out]) {
    #pragma HLS ARRAY_RESHAPE variable=w block factor=CONFIG::word_parts
    #pragma HLS ARRAY_PARTITION variable=indices block factor=CONFIG::index_parts
    #pragma HLS ARRAY_PARTITION variable=bias complete
    A x[CONFIG::n_in];
    #pragma HLS ARRAY_PARTITION variable=x complete
    A next[CONFIG::n_in];
    #pragma HLS ARRAY_PARTITION variable=next complete
    typename CONFIG::source::state_t states[CONFIG::lanes];
    #pragma HLS ARRAY_PARTITION variable=states complete
    typename CONFIG::sum_t sums[CONFIG::lanes];
    #pragma HLS ARRAY_PARTITION variable=sums complete
    typename CONFIG::sum_t spans[CONFIG::n_spans];
    #pragma HLS ARRAY_PARTITION variable=spans complete
    for (int row = 0; row < CONFIG::out_height; row++) {
        for (int column = 0; column <= CONFIG::out_width; column++) {
            FXLOOM_PIPELINE
            for (int step = 0; step < CONFIG::reuse; step++) {
                #pragma HLS PIPELINE II=1 rewind
                if (step == 0) sparse_take<CONFIG>(next, x);
                if (column < CONFIG::out_width) {
                    sparse_prefetch<CONFIG>(a, next, row, column, step);
                }
                if (column > 0) sparse_step<CONFIG>(x, w, indices, states, sums, spans, step);
                if (column > 0 && step == CONFIG::reuse - 1) {
                    const int position = row * CONFIG::out_width + column - 1;
                    sparse_result<CONFIG>(spans, bias, res + position * CONFIG::n_out);
                }
            }
        }
    }
}

// ---- streams ---------------------------------------------------------------------------------

#ifdef FXLOOM_STREAMS
// Pack by pack; each has the n_in values of a row.
template <class CONFIG, class P, class W, class I, class B, class Q>
void sparse_matmul_stream(hls::stream<P> &in, const W w[CONFIG::n_words],
                          const I indices[CONFIG::n_indices],
                          const B bias[CONFIG::n_out], hls::stream<Q> &out) {
    #pragma HLS ARRAY_RESHAPE variable=w block factor=CONFIG::word_parts
    #pragma HLS ARRAY_PARTITION variable=indices block factor=CONFIG::index_parts
    #pragma HLS ARRAY_PARTITION variable=bias complete
    typename P::value_type x[CONFIG::n_in];
    #pragma HLS ARRAY_PARTITION variable=x complete
    typename Q::value_type result[CONFIG::n_out];
    #pragma HLS ARRAY_PARTITION variable=result complete
    typename CONFIG::source::state_t states[CONFIG::lanes];
    #pragma HLS ARRAY_PARTITION variable=states complete
    typename CONFIG::sum_t sums[CONFIG::lanes];
    #pragma HLS ARRAY_PARTITION variable=sums complete
    typename CONFIG::sum_t spans[CONFIG::n_spans];
    #pragma HLS ARRAY_PARTITION variable=spans complete
    for (int row = 0; row < CONFIG::rows; row++) {
        for (int step = 0; step < CONFIG::reuse; step++) {
            #pragma HLS PIPELINE II=1 rewind
            if (step == 0) receive(in, x);
            sparse_step<CONFIG>(x, w, indices, states, sums, spans, step);
            if (step == CONFIG::reuse - 1) {
                sparse_result<CONFIG>(spans, bias, result);
                send(result, out);
            }
        }
    }
}

// Holds only the rows that windows reach over.
template <class CONFIG, class P, class W, class I, class B, class Q>
void sparse_conv_stream(hls::stream<P> &in, const W w[CONFIG::n_words],
                        const I indices[CONFIG::n_indices], const B bias[CONFIG::n_out],
                        hls::stream<Q> &out) {
    #pragma HLS ARRAY_RESHAPE variable=w block factor=CONFIG::word_parts
    #pragma HLS ARRAY_PARTITION variable=indices block factor=CONFIG::index_parts
    #pragma HLS ARRAY_PARTITION variable=bias complete
    typename P::value_type lines[CONFIG::lines * CONFIG::width * CONFIG::channels];
    #pragma HLS ARRAY_PARTITION variable=lines cyclic factor=CONFIG::channels
    typename P::value_type x[CONFIG::n_in];
    #pragma HLS ARRAY_PARTITION variable=x complete
    typename P::value_type next[CONFIG::n_in];
    #pragma HLS ARRAY_PARTITION variable=next complete
    typename Q::value_type result[CONFIG::n_out];
    #pragma HLS ARRAY_PARTITION variable=result complete
    typename CONFIG::source::state_t states[CONFIG::lanes];
    #pragma HLS ARRAY_PARTITION variable=states complete
    typename CONFIG::sum_t sums[CONFIG::lanes];
    #pragma HLS ARRAY_PARTITION variable=sums complete
    typename CONFIG::sum_t spans[CONFIG::n_spans];
    #pragma HLS ARRAY_PARTITION variable=spans complete
    int have = 0;
    for (int row = 0; row < CONFIG::out_height; row++) {
        have = receive_rows<CONFIG>(in, lines, have, row);
        for (int column = 0; column <= CONFIG::out_width; column++) {
            for (int step = 0; step < CONFIG::reuse; step++) {
                #pragma HLS PIPELINE II=1
                if (step == 0) sparse_take<CONFIG>(next, x);
                if (column < CONFIG::out_width) {
                    sparse_prefetch<CONFIG>(lines, next, row, column, step);
                }
                if (column > 0) sparse_step<CONFIG>(x, w, indices, states, sums, spans, step);
                if (column > 0 && step == CONFIG::reuse - 1) {
                    sparse_result<CONFIG>(spans, bias, result);
                    send(result, out);
                }
            }
        }
    }
    drop_rows<CONFIG>(in, have);
}
#endif

} // namespace fxloom

#endif
