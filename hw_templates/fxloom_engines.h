// Loops of products with a constant matrix, over positions and the steps of each.
//
// CONFIG::engine multiplies: it takes CONFIG::reuse steps from one of the CONFIG::n_in values x of a
// position to those of the next; results come CONFIG::lag positions later. Its step(x, rom, step,
// first, last) gets what is read word by word, one a step, and whether x are values of a position
// and whether a result is due; its result(bias, res) follows the last step.
#ifndef FXLOOM_ENGINES_H_
#define FXLOOM_ENGINES_H_

namespace fxloom {

// ---- linear layers -----------------------------------------------------------------------------

// x[rows, n_in] times the matrix, plus a bias.
template <class CONFIG, class A, class W, class B, class R>
void engine_matmul(const A a[CONFIG::rows * CONFIG::n_in], const W rom[CONFIG::stored],
                   const B bias[CONFIG::n_out], R res[CONFIG::rows * CONFIG::n_out]) {
    #pragma HLS ARRAY_RESHAPE variable=rom block factor=CONFIG::word
    #pragma HLS ARRAY_PARTITION variable=bias complete
    A x[CONFIG::n_in];
    #pragma HLS ARRAY_PARTITION variable=x complete
    typename CONFIG::engine engine;
    for (int row = 0; row < CONFIG::rows + CONFIG::lag; row++) {
        FXLOOM_PIPELINE
        for (int step = 0; step < CONFIG::reuse; step++) {
            #pragma HLS PIPELINE II=1 rewind
            const bool first = row < CONFIG::rows, last = row >= CONFIG::lag;
            if (first && step == 0) sparse_take<CONFIG>(a + row * CONFIG::n_in, x);
            engine.step(x, rom, step, first, last);
            if (last && step == CONFIG::reuse - 1) {
                engine.result(bias, res + (row - CONFIG::lag) * CONFIG::n_out);
            }
        }
    }
}

// The same for one row and one step: nothing is read from memory, and rows of different samples
// follow each other without a pause.
template <class CONFIG, class A, class W, class B, class R>
void engine_once_matmul(const A a[CONFIG::n_in], const W rom[CONFIG::stored],
                        const B bias[CONFIG::n_out], R res[CONFIG::n_out]) {
    #pragma HLS PIPELINE II=1
    #pragma HLS ARRAY_PARTITION variable=rom complete
    #pragma HLS ARRAY_PARTITION variable=bias complete
    A x[CONFIG::n_in];
    #pragma HLS ARRAY_PARTITION variable=x complete
    typename CONFIG::engine engine;
    sparse_take<CONFIG>(a, x);
    engine.step(x, rom, 0, true, true);
    engine.result(bias, res);
}

// ---- convolutions ------------------------------------------------------------------------------

// The cross-correlation of an image with the matrix, plus a bias.
template <class CONFIG, class A, class W, class B, class R>
void engine_conv(const A a[CONFIG::height * CONFIG::width * CONFIG::channels],
                 const W rom[CONFIG::stored], const B bias[CONFIG::n_out],
                 R res[CONFIG::out_height * CONFIG::out_width * CONFIG::n_out]) {
    #pragma HLS ARRAY_RESHAPE variable=rom block factor=CONFIG::word
    #pragma HLS ARRAY_PARTITION variable=bias complete
    A x[CONFIG::n_in], next[CONFIG::n_in];
    #pragma HLS ARRAY_PARTITION variable=x complete
    #pragma HLS ARRAY_PARTITION variable=next complete
    typename CONFIG::engine engine;
    for (int row = 0; row < CONFIG::out_height; row++) {
        for (int column = 0; column <= CONFIG::out_width + CONFIG::lag; column++) {
            FXLOOM_PIPELINE
            for (int step = 0; step < CONFIG::reuse; step++) {
                #pragma HLS PIPELINE II=1 rewind
                const bool first = column > 0 && column <= CONFIG::out_width;
                const bool last = column > CONFIG::lag;
                if (first && step == 0) sparse_take<CONFIG>(next, x);
                if (column < CONFIG::out_width) {
                    sparse_prefetch<CONFIG>(a, next, row, column, step);
                }
                engine.step(x, rom, step, first, last);
                if (last && step == CONFIG::reuse - 1) {
                    const int at = row * CONFIG::out_width + column - 1 - CONFIG::lag;
                    engine.result(bias, res + at * CONFIG::n_out);
                }
            }
        }
    }
}

// ---- streams -----------------------------------------------------------------------------------

#ifdef FXLOOM_STREAMS
// Pack by pack; each has the n_in values of a row.
template <class CONFIG, class P, class W, class B, class Q>
void engine_matmul_stream(hls::stream<P> &in, const W rom[CONFIG::stored],
                          const B bias[CONFIG::n_out], hls::stream<Q> &out) {
    #pragma HLS ARRAY_RESHAPE variable=rom block factor=CONFIG::word
    #pragma HLS ARRAY_PARTITION variable=bias complete
    typename P::value_type x[CONFIG::n_in];
    #pragma HLS ARRAY_PARTITION variable=x complete
    typename Q::value_type result[CONFIG::n_out];
    #pragma HLS ARRAY_PARTITION variable=result complete
    typename CONFIG::engine engine;
    for (int row = 0; row < CONFIG::rows + CONFIG::lag; row++) {
        for (int step = 0; step < CONFIG::reuse; step++) {
            #pragma HLS PIPELINE II=1 rewind
            const bool first = row < CONFIG::rows, last = row >= CONFIG::lag;
            if (first && step == 0) receive(in, x);
            engine.step(x, rom, step, first, last);
            if (last && step == CONFIG::reuse - 1) {
                engine.result(bias, result);
                send(result, out);
            }
        }
    }
}

template <class CONFIG, class P, class W, class B, class Q>
void engine_once_matmul_stream(hls::stream<P> &in, const W rom[CONFIG::stored],
                               const B bias[CONFIG::n_out], hls::stream<Q> &out) {
    #pragma HLS PIPELINE II=1
    typename P::value_type x[CONFIG::n_in];
    #pragma HLS ARRAY_PARTITION variable=x complete
    typename Q::value_type result[CONFIG::n_out];
    #pragma HLS ARRAY_PARTITION variable=result complete
    receive(in, x);
    engine_once_matmul<CONFIG>(x, rom, bias, result);
    send(result, out);
}

// Holds only the rows that windows reach over.
template <class CONFIG, class P, class W, class B, class Q>
void engine_conv_stream(hls::stream<P> &in, const W rom[CONFIG::stored],
                        const B bias[CONFIG::n_out], hls::stream<Q> &out) {
    #pragma HLS ARRAY_RESHAPE variable=rom block factor=CONFIG::word
    #pragma HLS ARRAY_PARTITION variable=bias complete
    typedef typename P::value_type X;
    X lines[CONFIG::lines * CONFIG::width * CONFIG::channels];
    #pragma HLS ARRAY_PARTITION variable=lines cyclic factor=CONFIG::channels
    X x[CONFIG::n_in], next[CONFIG::n_in];
    #pragma HLS ARRAY_PARTITION variable=x complete
    #pragma HLS ARRAY_PARTITION variable=next complete
    typename Q::value_type result[CONFIG::n_out];
    #pragma HLS ARRAY_PARTITION variable=result complete
    typename CONFIG::engine engine;
    int have = 0;
    for (int row = 0; row < CONFIG::out_height; row++) {
        have = receive_rows<CONFIG>(in, lines, have, row);
        for (int column = 0; column <= CONFIG::out_width + CONFIG::lag; column++) {
            for (int step = 0; step < CONFIG::reuse; step++) {
                #pragma HLS PIPELINE II=1
                const bool first = column > 0 && column <= CONFIG::out_width;
                const bool last = column > CONFIG::lag;
                if (first && step == 0) sparse_take<CONFIG>(next, x);
                if (column < CONFIG::out_width) {
                    sparse_prefetch<CONFIG>(lines, next, row, column, step);
                }
                engine.step(x, rom, step, first, last);
                if (last && step == CONFIG::reuse - 1) {
                    engine.result(bias, result);
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
