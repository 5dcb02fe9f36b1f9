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

// The outputs of a position: see sparse_result, which adds the bias and converts.
template <class CONFIG, class S> void circulant_totals(const S *spans, S *totals) {
    #pragma HLS INLINE
    FXLOOM_UNROLL
    for (int o = 0; o < CONFIG::n_out; o++) {
        #pragma HLS UNROLL
        S total = 0;
        FXLOOM_UNROLL
        for (int s = 0; s < CONFIG::n_spans; s++) {
            #pragma HLS UNROLL
            if (CONFIG::output(s) == o / CONFIG::block) {
                total += spans[s * CONFIG::block + o % CONFIG::block];
            }
        }
        totals[o] = total;
    }
}
