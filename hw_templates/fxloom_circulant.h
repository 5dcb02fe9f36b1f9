// Products with block-circulant matrices: of a block of BLOCK inputs by BLOCK outputs only BLOCK
// values are stored.
//
// A lane has BLOCK multipliers and a memory of values. In each of CONFIG::reuse steps it multiplies
// the next value, of class d, by the inputs of its block: the product of input i adds to output
// (i + d) mod BLOCK. The lane's sums move on by one place after every step, as the class does, so
// that multiplier i always adds to place i and nothing is chosen: values follow each other class by
// class, block of inputs by block of inputs. Span number s, what a lane adds up for the outputs of
// block CONFIG::output(s), ends with value CONFIG::end(s) = lane * reuse + step. Positions follow
// each other without a pause, but for one at the beginning of every row of an image.
#ifndef FXLOOM_CIRCULANT_H_
#define FXLOOM_CIRCULANT_H_

namespace fxloom {

// The mantissas of a position, tap by tap, the last block of each filled up with zeros.
template <class CONFIG, class A, class X> void circulant_take(const A *a, X *x) {
    #pragma HLS INLINE
    FXLOOM_UNROLL
    for (int tap = 0; tap < CONFIG::taps; tap++) {
        #pragma HLS UNROLL
        FXLOOM_UNROLL
        for (int k = 0; k < CONFIG::tap_size; k++) {
            #pragma HLS UNROLL
            X value = 0;
            if (k < CONFIG::tap_inputs) value = read<X>(a[tap * CONFIG::tap_inputs + k]);
            x[tap * CONFIG::tap_size + k] = value;
        }
    }
}

// Where a lane begins, and where it is: block of inputs and class. Nothing of it remains where
// blocks are wired.
template <class CONFIG, class N> void circulant_begin(N *blocks, N *classes) {
    #pragma HLS INLINE
    FXLOOM_UNROLL
    for (int lane = 0; lane < CONFIG::lanes; lane++) {
        #pragma HLS UNROLL
        blocks[lane] = lane * CONFIG::reuse / CONFIG::block % CONFIG::blocks;
        classes[lane] = lane * CONFIG::reuse % CONFIG::block;
    }
}

// The inputs that a lane multiplies in a step. Few steps: one of the blocks that it reaches is
// chosen, each a constant; many: one of all.
template <class CONFIG, class X, class N>
void circulant_operands(const X *x, const N *blocks, X *values, int lane, int step) {
    #pragma HLS INLINE
    const int first = lane * CONFIG::reuse / CONFIG::block;
    FXLOOM_UNROLL
    for (int k = 0; k < CONFIG::block; k++) {
        #pragma HLS UNROLL
        X value = 0;
        if (CONFIG::wired) {
            FXLOOM_UNROLL
            for (int n = 0; n < CONFIG::reach; n++) {
                #pragma HLS UNROLL
                const int start = (first + n) * CONFIG::block - lane * CONFIG::reuse;
                const int block = (first + n) % CONFIG::blocks;
                if (step >= start && step < start + CONFIG::block) {
                    value = x[block * CONFIG::block + k];
                }
            }
        } else {
            value = x[blocks[lane].to_int() * CONFIG::block + k];
        }
        values[k] = value;
    }
}

// BLOCK products of every lane; where a span ends, its sums are kept and the lane begins again.
template <class CONFIG, class X, class W, class N, class S>
void circulant_step(const X *x, const W *w, N *blocks, N *classes, S *sums, S *spans, int step) {
    #pragma HLS INLINE
    if (step == 0) circulant_begin<CONFIG>(blocks, classes);
    FXLOOM_UNROLL
    for (int lane = 0; lane < CONFIG::lanes; lane++) {
        #pragma HLS UNROLL
        const typename CONFIG::w_t weight = w[lane * CONFIG::reuse + step];
        X values[CONFIG::block];
        #pragma HLS ARRAY_PARTITION variable=values complete
        S moved[CONFIG::block];
        #pragma HLS ARRAY_PARTITION variable=moved complete
        circulant_operands<CONFIG>(x, blocks, values, lane, step);
        FXLOOM_UNROLL
        for (int k = 0; k < CONFIG::block; k++) {
            #pragma HLS UNROLL
            S sum = sums[lane * CONFIG::block + k];
            if (step == 0) sum = 0;
            sum += CONFIG::product::times(values[k], weight);
            moved[(k + CONFIG::block - 1) % CONFIG::block] = sum;
        }
        FXLOOM_UNROLL
        for (int k = 0; k < CONFIG::block; k++) {
            #pragma HLS UNROLL
            sums[lane * CONFIG::block + k] = moved[k];
        }
        if (!CONFIG::wired) {
            const bool is_last = classes[lane] == CONFIG::block - 1;
            if (is_last) {
                blocks[lane] = blocks[lane] == CONFIG::blocks - 1 ? N(0) : N(blocks[lane] + 1);
            }
            classes[lane] = is_last ? N(0) : N(classes[lane] + 1);
        }
    }
    FXLOOM_UNROLL
    for (int s = 0; s < CONFIG::n_spans; s++) {
        #pragma HLS UNROLL
        const int lane = CONFIG::end(s) / CONFIG::reuse;
        if (step == CONFIG::end(s) % CONFIG::reuse) {
            FXLOOM_UNROLL
            for (int k = 0; k < CONFIG::block; k++) {
                #pragma HLS UNROLL
                // Place k holds what the next class would add input k to.
                const int output = (k + CONFIG::end(s) + 1) % CONFIG::block;
                spans[s * CONFIG::block + output] = sums[lane * CONFIG::block + k];
                sums[lane * CONFIG::block + k] = 0;
            }
        }
    }
}

// The outputs of a position: a bias and the spans of its block.
template <class CONFIG, class S, class B, class R>
void circulant_result(const S *spans, const B *bias, R *res) {
    #pragma HLS INLINE
    S totals[CONFIG::n_out];
    #pragma HLS ARRAY_PARTITION variable=totals complete
    FXLOOM_UNROLL
    for (int o = 0; o < CONFIG::n_out; o++) {
        #pragma HLS UNROLL
        totals[o] = 0;
        FXLOOM_UNROLL
        for (int s = 0; s < CONFIG::n_spans; s++) {
            #pragma HLS UNROLL
            if (CONFIG::output(s) == o / CONFIG::block) {
                totals[o] += spans[s * CONFIG::block + o % CONFIG::block];
            }
        }
    }
    with_bias<CONFIG>(totals, bias, res);
}

// ---- linear layers ---------------------------------------------------------------------------

// x[rows, n_in] times the matrix, plus a bias.
template <class CONFIG, class A, class W, class B, class R>
void circulant_matmul(const A a[CONFIG::rows * CONFIG::n_in],
                      const W w[CONFIG::lanes * CONFIG::reuse], const B bias[CONFIG::n_out],
                      R res[CONFIG::rows * CONFIG::n_out]) {
    #pragma HLS ARRAY_RESHAPE variable=w block factor=CONFIG::lanes
    #pragma HLS ARRAY_PARTITION variable=bias complete
    typename CONFIG::a_t x[CONFIG::blocks * CONFIG::block];
    #pragma HLS ARRAY_PARTITION variable=x complete
    typename CONFIG::n_t blocks[CONFIG::lanes], classes[CONFIG::lanes];
    #pragma HLS ARRAY_PARTITION variable=blocks complete
    #pragma HLS ARRAY_PARTITION variable=classes complete
    typename CONFIG::sum_t sums[CONFIG::lanes * CONFIG::block];
    #pragma HLS ARRAY_PARTITION variable=sums complete
    typename CONFIG::sum_t spans[CONFIG::n_spans * CONFIG::block];
    #pragma HLS ARRAY_PARTITION variable=spans complete
    for (int row = 0; row < CONFIG::rows; row++) {
        FXLOOM_PIPELINE
        for (int step = 0; step < CONFIG::reuse; step++) {
            #pragma HLS PIPELINE II=1 rewind
            if (step == 0) circulant_take<CONFIG>(a + row * CONFIG::n_in, x);
            circulant_step<CONFIG>(x, w, blocks, classes, sums, spans, step);
            if (step == CONFIG::reuse - 1) {
                circulant_result<CONFIG>(spans, bias, res + row * CONFIG::n_out);
            }
        }
    }
}

// ---- convolutions: windows come in as in sparse_conv -----------------------------------------

// The cross-correlation of an image with the matrix, plus a bias.
template <class CONFIG, class A, class W, class B, class R>
void circulant_conv(const A a[CONFIG::height * CONFIG::width * CONFIG::channels],
                    const W w[CONFIG::lanes * CONFIG::reuse], const B bias[CONFIG::n_out],
                    R res[CONFIG::out_height * CONFIG::out_width * CONFIG::n_out]) {
    #pragma HLS ARRAY_RESHAPE variable=w block factor=CONFIG::lanes
    #pragma HLS ARRAY_PARTITION variable=bias complete
    A next[CONFIG::n_in];
    #pragma HLS ARRAY_PARTITION variable=next complete
    typename CONFIG::a_t x[CONFIG::blocks * CONFIG::block];
    #pragma HLS ARRAY_PARTITION variable=x complete
    typename CONFIG::n_t blocks[CONFIG::lanes], classes[CONFIG::lanes];
    #pragma HLS ARRAY_PARTITION variable=blocks complete
    #pragma HLS ARRAY_PARTITION variable=classes complete
    typename CONFIG::sum_t sums[CONFIG::lanes * CONFIG::block];
    #pragma HLS ARRAY_PARTITION variable=sums complete
    typename CONFIG::sum_t spans[CONFIG::n_spans * CONFIG::block];
    #pragma HLS ARRAY_PARTITION variable=spans complete
    for (int row = 0; row < CONFIG::out_height; row++) {
        for (int column = 0; column <= CONFIG::out_width; column++) {
            FXLOOM_PIPELINE
            for (int step = 0; step < CONFIG::reuse; step++) {
                #pragma HLS PIPELINE II=1 rewind
                if (step == 0) circulant_take<CONFIG>(next, x);
                if (column < CONFIG::out_width) {
                    sparse_prefetch<CONFIG>(a, next, row, column, step);
                }
                if (column > 0) {
                    circulant_step<CONFIG>(x, w, blocks, classes, sums, spans, step);
                }
                if (column > 0 && step == CONFIG::reuse - 1) {
                    const int position = row * CONFIG::out_width + column - 1;
                    circulant_result<CONFIG>(spans, bias, res + position * CONFIG::n_out);
                }
            }
        }
    }
}

// ---- streams ---------------------------------------------------------------------------------

#ifdef FXLOOM_STREAMS
// Pack by pack; each has the n_in values of a row.
template <class CONFIG, class P, class W, class B, class Q>
void circulant_matmul_stream(hls::stream<P> &in, const W w[CONFIG::lanes * CONFIG::reuse],
                             const B bias[CONFIG::n_out], hls::stream<Q> &out) {
    #pragma HLS ARRAY_RESHAPE variable=w block factor=CONFIG::lanes
    #pragma HLS ARRAY_PARTITION variable=bias complete
    typename P::value_type pack[CONFIG::n_in];
    #pragma HLS ARRAY_PARTITION variable=pack complete
    typename Q::value_type result[CONFIG::n_out];
    #pragma HLS ARRAY_PARTITION variable=result complete
    typename CONFIG::a_t x[CONFIG::blocks * CONFIG::block];
    #pragma HLS ARRAY_PARTITION variable=x complete
    typename CONFIG::n_t blocks[CONFIG::lanes], classes[CONFIG::lanes];
    #pragma HLS ARRAY_PARTITION variable=blocks complete
    #pragma HLS ARRAY_PARTITION variable=classes complete
    typename CONFIG::sum_t sums[CONFIG::lanes * CONFIG::block];
    #pragma HLS ARRAY_PARTITION variable=sums complete
    typename CONFIG::sum_t spans[CONFIG::n_spans * CONFIG::block];
    #pragma HLS ARRAY_PARTITION variable=spans complete
    for (int row = 0; row < CONFIG::rows; row++) {
        for (int step = 0; step < CONFIG::reuse; step++) {
            #pragma HLS PIPELINE II=1 rewind
            if (step == 0) {
                receive(in, pack);
                circulant_take<CONFIG>(pack, x);
            }
            circulant_step<CONFIG>(x, w, blocks, classes, sums, spans, step);
            if (step == CONFIG::reuse - 1) {
                circulant_result<CONFIG>(spans, bias, result);
                send(result, out);
            }
        }
    }
}

// Holds only the rows that windows reach over.
template <class CONFIG, class P, class W, class B, class Q>
void circulant_conv_stream(hls::stream<P> &in, const W w[CONFIG::lanes * CONFIG::reuse],
                           const B bias[CONFIG::n_out], hls::stream<Q> &out) {
    #pragma HLS ARRAY_RESHAPE variable=w block factor=CONFIG::lanes
    #pragma HLS ARRAY_PARTITION variable=bias complete
    typename P::value_type lines[CONFIG::lines * CONFIG::width * CONFIG::channels];
    #pragma HLS ARRAY_PARTITION variable=lines cyclic factor=CONFIG::channels
    typename P::value_type next[CONFIG::n_in];
    #pragma HLS ARRAY_PARTITION variable=next complete
    typename Q::value_type result[CONFIG::n_out];
    #pragma HLS ARRAY_PARTITION variable=result complete
    typename CONFIG::a_t x[CONFIG::blocks * CONFIG::block];
    #pragma HLS ARRAY_PARTITION variable=x complete
    typename CONFIG::n_t blocks[CONFIG::lanes], classes[CONFIG::lanes];
    #pragma HLS ARRAY_PARTITION variable=blocks complete
    #pragma HLS ARRAY_PARTITION variable=classes complete
    typename CONFIG::sum_t sums[CONFIG::lanes * CONFIG::block];
    #pragma HLS ARRAY_PARTITION variable=sums complete
    typename CONFIG::sum_t spans[CONFIG::n_spans * CONFIG::block];
    #pragma HLS ARRAY_PARTITION variable=spans complete
    int have = 0;
    for (int row = 0; row < CONFIG::out_height; row++) {
        have = receive_rows<CONFIG>(in, lines, have, row);
        for (int column = 0; column <= CONFIG::out_width; column++) {
            for (int step = 0; step < CONFIG::reuse; step++) {
                #pragma HLS PIPELINE II=1
                if (step == 0) circulant_take<CONFIG>(next, x);
                if (column < CONFIG::out_width) {
                    sparse_prefetch<CONFIG>(lines, next, row, column, step);
                }
                if (column > 0) {
                    circulant_step<CONFIG>(x, w, blocks, classes, sums, spans, step);
                }
                if (column > 0 && step == CONFIG::reuse - 1) {
                    circulant_result<CONFIG>(spans, bias, result);
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
