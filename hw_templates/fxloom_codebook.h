// Products with matrices of few different values: one multiplication for many weights.
//
// CONFIG::engine (fxloom_engines.h) says in which order. codebook_sums adds up the inputs that meet the same value, for
// every output, and multiplies each of these sums once; codebook_products multiplies every input by
// every value once, and each output adds up the products that its indices name.
#ifndef FXLOOM_CODEBOOK_H_
#define FXLOOM_CODEBOOK_H_

namespace fxloom {

// ---- sums first --------------------------------------------------------------------------------

struct only_input {
    template <class X, class W> static X times(const X &x, const W &) {
        #pragma HLS INLINE
        return x;
    }
};

// A lane of CONFIG::adding adds one input a step, all that belong to one value of one output after
// each other; such a sum is a span, as in fxloom_sparse.h. The lanes of CONFIG::multiplying have one
// multiplier each, and multiply these sums during the steps of the next position; without reuse
// everything happens in one step, and nothing lags.
template <class CONFIG> struct codebook_sums {
    typedef typename CONFIG::adding adding;
    typedef typename CONFIG::multiplying multiplying;
    typename adding::sum_t running[adding::lanes];
    typename adding::sum_t spans[adding::n_spans];
    typename adding::sum_t sums[adding::n_out];
    typename adding::source::state_t input_states[adding::lanes];
    typename multiplying::source::state_t sum_states[multiplying::lanes];
    typename CONFIG::sum_t added[multiplying::lanes];
    typename CONFIG::sum_t products[multiplying::n_spans];

    codebook_sums() {
        #pragma HLS INLINE
        #pragma HLS ARRAY_PARTITION variable=running complete
        #pragma HLS ARRAY_PARTITION variable=spans complete
        #pragma HLS ARRAY_PARTITION variable=sums complete
        #pragma HLS ARRAY_PARTITION variable=input_states complete
        #pragma HLS ARRAY_PARTITION variable=sum_states complete
        #pragma HLS ARRAY_PARTITION variable=added complete
        #pragma HLS ARRAY_PARTITION variable=products complete
    }

    template <class X> void add(const X *x, int step) {
        #pragma HLS INLINE
        sparse_step<adding>(x, adding::indices(), adding::indices(), input_states, running, spans,
                            step);
        if (step == CONFIG::reuse - 1) sparse_totals<adding>(spans, sums);
    }

    // first: x are values of a position; last: sums of one are there.
    template <class X, class W>
    void step(const X *x, const W *rom, int step, bool first, bool last) {
        #pragma HLS INLINE
        if (CONFIG::lag == 0 && first) add(x, step);
        if (last && step < multiplying::reuse) {
            sparse_step<multiplying>(sums, rom, multiplying::indices(), sum_states, added, products,
                                     step);
        }
        if (CONFIG::lag > 0 && first) add(x, step);
    }

    template <class B, class R> void result(const B *bias, R *res) {
        #pragma HLS INLINE
        typename CONFIG::sum_t totals[CONFIG::n_out];
        #pragma HLS ARRAY_PARTITION variable=totals complete
        sparse_totals<multiplying>(products, totals);
        with_bias<CONFIG>(totals, bias, res);
    }
};

// ---- products first ----------------------------------------------------------------------------

// In a step CONFIG::wide inputs are multiplied by the CONFIG::n_values values of every codebook.
// Each lane chooses a product for each of these inputs and adds them to the sum of one output; of
// CONFIG::turns outputs one after the other, during which the products stay. Symbols from n_values
// on stand for zero.
template <class CONFIG> struct codebook_products {
    typename CONFIG::product_t products[CONFIG::wide * CONFIG::codebooks * CONFIG::n_values];
    typename CONFIG::sum_t sums[CONFIG::n_out];

    codebook_products() {
        #pragma HLS INLINE
        #pragma HLS ARRAY_PARTITION variable=products complete
        #pragma HLS ARRAY_PARTITION variable=sums complete
    }

    template <class X> void multiply(const X *x, int block) {
        #pragma HLS INLINE
        const int all = CONFIG::codebooks * CONFIG::n_values;
        FXLOOM_UNROLL
        for (int t = 0; t < CONFIG::wide; t++) {
            #pragma HLS UNROLL
            const int k = block * CONFIG::wide + t;
            typename CONFIG::a_t value = 0;
            if (k < CONFIG::n_in) value = read<typename CONFIG::a_t>(x[k]);
            FXLOOM_UNROLL
            for (int v = 0; v < all; v++) {
                #pragma HLS UNROLL
                const typename CONFIG::w_t weight = CONFIG::value(v);
                products[t * all + v] = CONFIG::product::times(value, weight);
            }
        }
    }

    template <class X, class I>
    void step(const X *x, const I *rom, int step, bool first, bool) {
        #pragma HLS INLINE
        const int block = step / CONFIG::turns;
        const int turn = step % CONFIG::turns;
        if (!first) return;
        if (turn == 0) multiply(x, block);
        FXLOOM_UNROLL
        for (int lane = 0; lane < CONFIG::lanes; lane++) {
            #pragma HLS UNROLL
            const int book = lane / CONFIG::lanes_of_book;
            typename CONFIG::sum_t more = 0;
            FXLOOM_UNROLL
            for (int t = 0; t < CONFIG::wide; t++) {
                #pragma HLS UNROLL
                const typename CONFIG::i_t symbol =
                    rom[(lane * CONFIG::wide + t) * CONFIG::reuse + step];
                const int at = (t * CONFIG::codebooks + book) * CONFIG::n_values;
                if (symbol < CONFIG::n_values) more += products[at + symbol.to_int()];
            }
            FXLOOM_UNROLL
            for (int o = 0; o < CONFIG::turns; o++) {
                #pragma HLS UNROLL
                const int output = lane * CONFIG::turns + o;
                if (o == turn && output < CONFIG::n_out) {
                    if (block == 0) sums[output] = 0;
                    sums[output] += more;
                }
            }
        }
    }

    template <class B, class R> void result(const B *bias, R *res) {
        #pragma HLS INLINE
        with_bias<CONFIG>(sums, bias, res);
    }
};

} // namespace fxloom

#endif
