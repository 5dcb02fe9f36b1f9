// hls::stream for the C simulation: what the project's own hls_stream.h gives, in fewer functions.
//
// The driver begins with this file, whose guard keeps hls_stream.h out. That file has a std::deque,
// and so some 120 functions for every type of pack: they were half of the time that compiling a
// streamed project took. The same calls, values and warnings; one thread, any number of packs.
#ifndef X_HLS_STREAM_SIM_H
#define X_HLS_STREAM_SIM_H

#include <cstddef>
#include <iostream>
#include <string>

namespace hls {

// Name and places of a ring; once for all types.
class stream_ring {
  protected:
    const std::string name;
    std::size_t first, count, room;

    explicit stream_ring(const std::string &name) : name(name), first(0), count(0), room(0) {}

    ~stream_ring() {
        if (count) warn("contains leftover data,");
    }

    void warn(const char *what) const {
        std::cout << "WARNING: Hls::stream '" << name << "' " << what
                  << " which may result in RTL simulation hanging." << std::endl;
    }

    // The place of the oldest pack, which is free from now on.
    std::size_t taken() {
        const std::size_t place = first;
        first = first + 1 == room ? 0 : first + 1;
        count--;
        return place;
    }

    // The place of a new pack, behind the others.
    std::size_t added() {
        const std::size_t place = first + count;
        count++;
        return place < room ? place : place - room;
    }

  public:
    bool empty() const { return count == 0; }
    bool full() const { return false; }
    std::size_t size() const { return count; }
};

template <class T> class stream : public stream_ring {
    T *packs;

    stream(const stream &);
    stream &operator=(const stream &);

    void grow() {
        const std::size_t more = 2 * room + 16;
        T *const larger = new T[more];
        for (std::size_t i = 0; i < count; i++) {
            const std::size_t place = first + i;
            larger[i] = packs[place < room ? place : place - room];
        }
        delete[] packs;
        packs = larger;
        first = 0;
        room = more;
    }

  public:
    explicit stream(const std::string &name = "unnamed") : stream_ring(name), packs(NULL) {}
    ~stream() { delete[] packs; }

    void write(const T &pack) {
        if (count == room) grow();
        packs[added()] = pack;
    }

    T read() {
        if (count) return packs[taken()];
        warn("is read while empty,");
        return T();
    }

    void read(T &pack) { pack = read(); }

    bool read_nb(T &pack) {
        const bool there = count != 0;
        pack = there ? packs[taken()] : T();
        return there;
    }

    bool write_nb(const T &pack) {
        write(pack);
        return true;
    }

    void operator>>(T &pack) { read(pack); }
    void operator<<(const T &pack) { write(pack); }
};

} // namespace hls

#endif
