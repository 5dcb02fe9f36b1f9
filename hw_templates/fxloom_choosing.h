// Kernels of fxloom that compare, and that choose by a computed value; see fxloom_kernels.h, which
// includes this file at its end.
#ifndef FXLOOM_CHOOSING_H_
#define FXLOOM_CHOOSING_H_

namespace fxloom {

struct op_lt {
    template <class T> static T apply(const T &a, const T &b) { return T(a < b); }
};
struct op_le {
    template <class T> static T apply(const T &a, const T &b) { return T(a <= b); }
};
struct op_eq {
    template <class T> static T apply(const T &a, const T &b) { return T(a == b); }
};
struct op_ne {
    template <class T> static T apply(const T &a, const T &b) { return T(a != b); }
};

// res[i] = c ? a << shift_a : b << shift_b; wide_t holds both.
template <class CONFIG, class C, class A, class B, class R>
void select(const C c[CONFIG::n_c], const A a[CONFIG::n_a], const B b[CONFIG::n_b],
            R res[CONFIG::n_out]) {
    #pragma HLS PIPELINE
    FXLOOM_UNROLL
    for (int i = 0; i < CONFIG::n_out; i++) {
        typename CONFIG::wide_t left = read<typename CONFIG::a_t>(a[CONFIG::source_a(i)]);
        typename CONFIG::wide_t right = read<typename CONFIG::b_t>(b[CONFIG::source_b(i)]);
        left <<= CONFIG::shift_a;
        right <<= CONFIG::shift_b;
        const typename CONFIG::c_t condition =
            read<typename CONFIG::c_t>(c[CONFIG::source_c(i)]);
        res[i] = write<R>(condition != 0 ? left : right);
    }
}

// res[i] = first k with the largest a[source(i, k)].
template <class CONFIG, class A, class R>
void argmax(const A a[CONFIG::n_in], R res[CONFIG::n_out]) {
    #pragma HLS PIPELINE
    FXLOOM_UNROLL
    for (int i = 0; i < CONFIG::n_out; i++) {
        typename CONFIG::a_t best = read<typename CONFIG::a_t>(a[CONFIG::source(i, 0)]);
        typename CONFIG::index_t index = 0;
        FXLOOM_UNROLL
        for (int k = 1; k < CONFIG::n_terms; k++) {
            const typename CONFIG::a_t x = read<typename CONFIG::a_t>(a[CONFIG::source(i, k)]);
            if (x > best) {
                best = x;
                index = k;
            }
        }
        res[i] = write<R>(index);
    }
}

// Row a[i] of a table of n_columns columns for every i.
template <class CONFIG, class A, class W, class R>
void embedding(const A a[CONFIG::n_in], const W table[CONFIG::n_table], R res[CONFIG::n_out]) {
    #pragma HLS PIPELINE
    FXLOOM_UNROLL
    for (int i = 0; i < CONFIG::n_in; i++) {
        const int row = read<typename CONFIG::a_t>(a[i]).to_int();
        FXLOOM_UNROLL
        for (int k = 0; k < CONFIG::n_columns; k++) {
            #pragma HLS UNROLL
            res[i * CONFIG::n_columns + k] =
                write<R>(typename CONFIG::w_t(table[row * CONFIG::n_columns + k]));
        }
    }
}

// x[batch, rows, n_in] times y[batch, n_in, n_out].
template <class CONFIG, class A, class B, class R>
void matmul_computed(const A a[CONFIG::n_a], const B b[CONFIG::n_b], R res[CONFIG::n_all]) {
    FXLOOM_PIPELINE
    for (int row = 0; row < CONFIG::batch * CONFIG::rows; row++) {
        #pragma HLS PIPELINE II=CONFIG::reuse
        const int matrix = row / CONFIG::rows * CONFIG::n_in * CONFIG::n_out;
        FXLOOM_UNROLL
        for (int o = 0; o < CONFIG::n_out; o++) {
            #pragma HLS UNROLL
            typename CONFIG::sum_t sum = 0;
            FXLOOM_UNROLL
            for (int k = 0; k < CONFIG::n_in; k++) {
                #pragma HLS UNROLL
                sum += read<typename CONFIG::a_t>(a[row * CONFIG::n_in + k]) *
                       read<typename CONFIG::b_t>(b[matrix + k * CONFIG::n_out + o]);
            }
            res[row * CONFIG::n_out + o] = write<R>(sum);
        }
    }
}

} // namespace fxloom

#endif
