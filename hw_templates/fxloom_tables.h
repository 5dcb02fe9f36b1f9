// Kernels of fxloom for tables and what softmax needs around them; see fxloom_kernels.h, which
// includes this file at its end.
#ifndef FXLOOM_TABLES_H_
#define FXLOOM_TABLES_H_

namespace fxloom {

// res[i] = table[a[i] - lowest]: a ROM with an entry for every mantissa of a.
template <class CONFIG, class A, class B, class R>
void lookup(const A a[CONFIG::n_out], const B table[CONFIG::n_table], R res[CONFIG::n_out]) {
    #pragma HLS PIPELINE
    FXLOOM_UNROLL
    for (int i = 0; i < CONFIG::n_out; i++) {
        typename CONFIG::index_t index = read<typename CONFIG::a_t>(a[i]);
        index -= CONFIG::lowest;
        res[i] = write<R>(typename CONFIG::b_t(table[index.to_int()]));
    }
}

// res[i] = largest of a[source(i, k)] over k.
template <class CONFIG, class A, class R>
void reduce_max(const A a[CONFIG::n_in], R res[CONFIG::n_out]) {
    #pragma HLS PIPELINE
    FXLOOM_UNROLL
    for (int i = 0; i < CONFIG::n_out; i++) {
        typename CONFIG::a_t best = read<typename CONFIG::a_t>(a[CONFIG::source(i, 0)]);
        FXLOOM_UNROLL
        for (int k = 1; k < CONFIG::n_terms; k++) {
            const typename CONFIG::a_t x = read<typename CONFIG::a_t>(a[CONFIG::source(i, k)]);
            if (x > best) best = x;
        }
        res[i] = write<R>(best);
    }
}

// Zeros before the leading one of a positive x in CONFIG::width bits, in steps of CONFIG::step.
template <class CONFIG, class T> int leading_zeros(const T &x) {
    #pragma HLS INLINE
    int count = CONFIG::width;
    FXLOOM_UNROLL
    for (int bit = 0; bit < CONFIG::width && bit < T::width; bit++) {
        #pragma HLS UNROLL
        if (x[bit]) count = CONFIG::width - 1 - bit;
    }
    return count / CONFIG::step;
}

// res[i] = a[i], positive, shifted left until its leading one is among the first CONFIG::step of
// CONFIG::width bits.
template <class CONFIG, class A, class R>
void normalise(const A a[CONFIG::n_out], R res[CONFIG::n_out]) {
    #pragma HLS PIPELINE
    FXLOOM_UNROLL
    for (int i = 0; i < CONFIG::n_out; i++) {
        const typename CONFIG::a_t x = read<typename CONFIG::a_t>(a[i]);
        typename CONFIG::wide_t wide = x;
        wide <<= leading_zeros<CONFIG>(x) * CONFIG::step;
        res[i] = write<R>(wide);
    }
}

// res[i] = a shifted left by one bit for every step by which normalise shifts b.
template <class CONFIG, class A, class B, class R>
void shift_like(const A a[CONFIG::n_a], const B b[CONFIG::n_b], R res[CONFIG::n_out]) {
    #pragma HLS PIPELINE
    FXLOOM_UNROLL
    for (int i = 0; i < CONFIG::n_out; i++) {
        typename CONFIG::wide_t wide = read<typename CONFIG::a_t>(a[CONFIG::source_a(i)]);
        const typename CONFIG::b_t x = read<typename CONFIG::b_t>(b[CONFIG::source_b(i)]);
        wide <<= leading_zeros<CONFIG>(x);
        res[i] = write<R>(wide);
    }
}

} // namespace fxloom

#endif
