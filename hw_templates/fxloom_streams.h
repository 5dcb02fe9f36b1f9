// Streams between the kernels of fxloom; see fxloom_kernels.h, which includes this file near its end.
// A stream carries packs, nnet::array<T, C>: one position of a tensor with its C channels.
#ifndef FXLOOM_STREAMS_H_
#define FXLOOM_STREAMS_H_

#include "hls_stream.h"
#ifndef __SYNTHESIS__
#include <iostream>
#include <sstream>
#include <string>
#endif

namespace fxloom {

template <class P, class T, int N> void receive(hls::stream<P> &stream, T (&a)[N]) {
    #pragma HLS INLINE
    for (int i = 0; i < N / (int)P::size; i++) {
        #pragma HLS PIPELINE
        const P pack = stream.read();
        for (int j = 0; j < (int)P::size; j++) {
            #pragma HLS UNROLL
            a[i * P::size + j] = pack[j];
        }
    }
}

template <class P, class T, int N> void send(const T (&a)[N], hls::stream<P> &stream) {
    #pragma HLS INLINE
    for (int i = 0; i < N / (int)P::size; i++) {
        #pragma HLS PIPELINE
        P pack;
        for (int j = 0; j < (int)P::size; j++) {
            #pragma HLS UNROLL
            pack[j] = a[i * P::size + j];
        }
        stream.write(pack);
    }
}

// Read the rows of an image up to the last that windows in row out_row of the result need, into a
// buffer of lines; `have` rows were read before. Returns how many have been read now.
template <class CONFIG, class P, class T, int N>
int receive_rows(hls::stream<P> &stream, T (&lines)[N], int have, int out_row) {
    #pragma HLS INLINE
    const int reach = (CONFIG::kernel_height - 1) * CONFIG::dilation_height + 1;
    int end = out_row * CONFIG::stride_height - CONFIG::pad_top + reach;
    if (end > CONFIG::height) end = CONFIG::height;
    for (; have < end; have++) {
        for (int column = 0; column < CONFIG::width; column++) {
            #pragma HLS PIPELINE
            const P pack = stream.read();
            const int start = (CONFIG::line(have) * CONFIG::width + column) * CONFIG::channels;
            for (int j = 0; j < CONFIG::channels; j++) {
                #pragma HLS UNROLL
                lines[start + j] = pack[j];
            }
        }
    }
    return have;
}

// Read the rows below the last window.
template <class CONFIG, class P> void drop_rows(hls::stream<P> &stream, int have) {
    #pragma HLS INLINE
    for (int i = have * CONFIG::width; i < CONFIG::height * CONFIG::width; i++) {
        #pragma HLS PIPELINE
        stream.read();
    }
}

// Packs in order, with packs of zeros where source(row) is negative.
template <class CONFIG, class P, class Q>
void pad_stream(hls::stream<P> &stream, hls::stream<Q> &padded) {
    for (int row = 0; row < CONFIG::n_out; row++) {
        #pragma HLS PIPELINE
        Q pack;
        if (CONFIG::source(row) >= 0) {
            const P inside = stream.read();
            for (int j = 0; j < (int)P::size; j++) {
                #pragma HLS UNROLL
                pack[j] = write<typename Q::value_type>(read<typename CONFIG::a_t>(inside[j]));
            }
        } else {
            for (int j = 0; j < (int)P::size; j++) {
                #pragma HLS UNROLL
                pack[j] = 0;
            }
        }
        padded.write(pack);
    }
}

// ---- C simulation ------------------------------------------------------------------------------

#ifndef __SYNTHESIS__
template <class P, int N> void push_mantissas(hls::stream<P> &stream, const long long *mantissas) {
    for (int i = 0; i < N; i++) {
        P pack;
        for (int j = 0; j < (int)P::size; j++)
            pack[j] = write<typename P::value_type>(mantissas[i * P::size + j]);
        stream.write(pack);
    }
}

template <class P, int N> void pop_mantissas(hls::stream<P> &stream, long long *mantissas) {
    for (int i = 0; i < N; i++) {
        const P pack = stream.read();
        for (int j = 0; j < (int)P::size; j++) mantissas[i * P::size + j] = to_integer(pack[j]);
    }
}

// hls::stream only warns on std::cout when it is read while empty or destroyed with data in it.
class complaints {
    std::ostringstream said;
    std::streambuf *before;

  public:
    complaints() : before(std::cout.rdbuf(said.rdbuf())) {}
    ~complaints() { std::cout.rdbuf(before); }
    std::string of_streams() const {
        const std::string text = said.str();
        return text.find("ls::stream") == std::string::npos ? std::string() : text;
    }
};
#endif

} // namespace fxloom

#endif
