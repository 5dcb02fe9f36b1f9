// Weights and run lengths as canonical Huffman codes: a lane decodes one of each in every step.
//
// For the loops of fxloom_sparse.h, where CONFIG::source is coded_words. A lane's ROM has words of
// CONFIG::word bits, which hold at least one code of a weight and one of a run length; codes follow
// each other without gaps, each with its first bit lowest. Nothing else is stored of a lane but
// indices[lane], the input that its first run begins at; w are the different weights.
#ifndef FXLOOM_HUFFMAN_H_
#define FXLOOM_HUFFMAN_H_

namespace fxloom {

// The number of the code that a window begins with, and its bits: those of the first length whose
// codes end beyond the next CODE::longest bits, of which the first is the most significant.
template <class CODE, class B> int huffman_number(const B &window, int &length) {
    #pragma HLS INLINE
    uint_t<CODE::longest + 1> bits = 0;
    FXLOOM_UNROLL
    for (int k = 0; k < CODE::longest; k++) {
        #pragma HLS UNROLL
        bits[CODE::longest - 1 - k] = window[k];
    }
    int number = 0;
    length = 0;
    FXLOOM_UNROLL
    for (int n = CODE::longest; n > 0; n--) {
        #pragma HLS UNROLL
        if (bits.to_int() < CODE::limit(n)) {
            number = CODE::base(n) + (bits.to_int() >> (CODE::longest - n));
            length = n;
        }
    }
    return number;
}

// Where a lane finds its weights: one in every step is decoded, with the run of zeros before it.
template <class CONFIG> struct coded_words {
    // bits that are read and not decoded, and how many; the next word; the next input
    struct state_t {
        uint_t<2 * CONFIG::word> bits;
        uint_t<8> have;
        uint_t<CONFIG::address_width> address;
        typename CONFIG::i_t place;
    };

    template <class X, class W, class I>
    static void next(const X *x, const W *w, const I *indices, state_t &state, int lane, int step,
                     typename CONFIG::a_t &value, typename CONFIG::w_t &weight) {
        #pragma HLS INLINE
        if (step == 0) {
            state.bits = 0;
            state.have = 0;
            state.address = 0;
            state.place = indices[lane];
        }
        if (state.have < CONFIG::word) { // one word is enough: no step takes more
            uint_t<2 * CONFIG::word> word = CONFIG::rom(lane, state.address.to_int());
            word <<= state.have.to_int();
            state.bits |= word;
            state.have += CONFIG::word;
            state.address += 1;
        }
        int of_run = 0;
        int of_weight = 0;
        const int run = CONFIG::run(huffman_number<typename CONFIG::runs>(state.bits, of_run));
        state.bits >>= of_run;
        weight = w[huffman_number<typename CONFIG::weights>(state.bits, of_weight)];
        state.bits >>= of_weight;
        state.have -= of_run + of_weight;
        int place = state.place.to_int() + run;
        if (place >= CONFIG::n_in) place -= CONFIG::n_in; // a run is shorter than all inputs
        value = read<typename CONFIG::a_t>(x[place]);
        state.place = place == CONFIG::n_in - 1 ? 0 : place + 1;
    }
};

} // namespace fxloom

#endif
