// Products with block-circulant matrices: of a block of `block` inputs by `block` outputs only
// `block` values are stored.
#ifndef FXLOOM_CIRCULANT_H_
#define FXLOOM_CIRCULANT_H_

namespace fxloom {

// A lane has CONFIG::block multipliers and a memory of values. In each of CONFIG::reuse steps it
// multiplies the next value, of class d, by the inputs of its block: the product of input i adds to
// output (i + d) mod block. The lane's sums move on by one place after every step, as the class
// does, so that multiplier i always adds to place i and nothing is chosen: values follow each other
// class by class, block of inputs by block of inputs. Span number s, what a lane adds up for the
// outputs of block CONFIG::output(s), ends with value CONFIG::end(s) = lane * reuse + step. Blocks
// of inputs are counted tap by tap; the last of each may be cut off.
template <class CONFIG> struct circulant_lanes {
    typename CONFIG::n_t blocks[CONFIG::lanes];
    typename CONFIG::n_t classes[CONFIG::lanes];
    typename CONFIG::a_t operands[CONFIG::lanes * CONFIG::block];
    typename CONFIG::sum_t sums[CONFIG::lanes * CONFIG::block];
    typename CONFIG::sum_t spans[CONFIG::n_spans * CONFIG::block];

    circulant_lanes() {
        #pragma HLS INLINE
        #pragma HLS ARRAY_PARTITION variable=blocks complete
        #pragma HLS ARRAY_PARTITION variable=classes complete
        #pragma HLS ARRAY_PARTITION variable=operands complete
        #pragma HLS ARRAY_PARTITION variable=sums complete
        #pragma HLS ARRAY_PARTITION variable=spans complete
    }

    // The inputs of a block become those of a lane.
    template <class X> void take(const X *x, int lane, int number) {
        #pragma HLS INLINE
        const int first = number % CONFIG::tap_blocks * CONFIG::block;
        FXLOOM_UNROLL
        for (int k = 0; k < CONFIG::block; k++) {
            #pragma HLS UNROLL
            typename CONFIG::a_t value = 0;
            if (first + k < CONFIG::tap_inputs) {
                const int at = number / CONFIG::tap_blocks * CONFIG::tap_inputs + first + k;
                value = read<typename CONFIG::a_t>(x[at]);
            }
            operands[lane * CONFIG::block + k] = value;
        }
    }

    // Few steps: one of the blocks that the lane reaches is chosen; many: one of all, by numbers
    // that are counted.
    template <class X> void choose(const X *x, int lane, int step) {
        #pragma HLS INLINE
        const int begin = lane * CONFIG::reuse;
        if (CONFIG::wired) {
            FXLOOM_UNROLL
            for (int n = 0; n < CONFIG::reach; n++) {
                #pragma HLS UNROLL
                const int number = begin / CONFIG::block + n;
                const int start = number * CONFIG::block - begin;
                if (step >= start && step < start + CONFIG::block) {
                    take(x, lane, number % CONFIG::blocks);
                }
            }
            return;
        }
        if (step == 0) {
            blocks[lane] = begin / CONFIG::block % CONFIG::blocks;
            classes[lane] = begin % CONFIG::block;
        }
        FXLOOM_UNROLL
        for (int n = 0; n < CONFIG::blocks; n++) {
            #pragma HLS UNROLL
            if (blocks[lane] == n) take(x, lane, n);
        }
        const bool is_last = classes[lane] == CONFIG::block - 1;
        classes[lane] = is_last ? 0 : classes[lane].to_int() + 1;
        if (is_last) {
            blocks[lane] = blocks[lane] == CONFIG::blocks - 1 ? 0 : blocks[lane].to_int() + 1;
        }
    }

    // One value of every lane; where a span ends, its sums are kept and the lane begins again.
    template <class X, class W> void step(const X *x, const W *rom, int step, bool first, bool) {
        #pragma HLS INLINE
        if (!first) return;
        FXLOOM_UNROLL
        for (int lane = 0; lane < CONFIG::lanes; lane++) {
            #pragma HLS UNROLL
            const typename CONFIG::w_t weight = rom[lane * CONFIG::reuse + step];
            choose(x, lane, step);
            typename CONFIG::sum_t moved[CONFIG::block];
            #pragma HLS ARRAY_PARTITION variable=moved complete
            FXLOOM_UNROLL
            for (int k = 0; k < CONFIG::block; k++) {
                #pragma HLS UNROLL
                typename CONFIG::sum_t sum = sums[lane * CONFIG::block + k];
                if (step == 0) sum = 0;
                sum += CONFIG::product::times(operands[lane * CONFIG::block + k], weight);
                moved[(k + CONFIG::block - 1) % CONFIG::block] = sum;
            }
            FXLOOM_UNROLL
            for (int k = 0; k < CONFIG::block; k++) {
                #pragma HLS UNROLL
                sums[lane * CONFIG::block + k] = moved[k];
            }
        }
        FXLOOM_UNROLL
        for (int s = 0; s < CONFIG::n_spans; s++) {
            #pragma HLS UNROLL
            if (step == CONFIG::end(s) % CONFIG::reuse) keep(s);
        }
    }

    void keep(int s) {
        #pragma HLS INLINE
        const int lane = CONFIG::end(s) / CONFIG::reuse;
        FXLOOM_UNROLL
        for (int k = 0; k < CONFIG::block; k++) {
            #pragma HLS UNROLL
            // Place k holds what the next class would add input k to.
            const int output = (k + CONFIG::end(s) + 1) % CONFIG::block;
            spans[s * CONFIG::block + output] = sums[lane * CONFIG::block + k];
            sums[lane * CONFIG::block + k] = 0;
        }
    }

    template <class B, class R> void result(const B *bias, R *res) {
        #pragma HLS INLINE
        typename CONFIG::sum_t totals[CONFIG::n_out];
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
};

} // namespace fxloom

#endif
