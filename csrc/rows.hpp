// The loops over rows in which each column belongs to one channel. A row holds the C values of a place (N, S, C), or
// all maps of an image (N, C, S) if maps are shorter than a vector. Narrow rows are packed: several form one row.
#pragma once

#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "cache.hpp"
#include "math.hpp"
#include "threads.hpp"

namespace {

constexpr int64_t kChunkValues = 1 << 15;  // values in a chunk of rows
constexpr int64_t kMaxChunks = 64;
constexpr int kRows = 8;             // rows summed in float before their sum is added in double
constexpr int kWritten = 4;          // rows written together
constexpr int kStreamed = 2;         // wide rows written together with streaming stores
constexpr int64_t kNarrow = 256;     // narrower rows are packed up to this many columns
constexpr int64_t kStrip = 512;      // columns whose sums stay in the first-level cache
constexpr int64_t kFarAhead = 4096;  // prefetch distance in values while nothing is written
constexpr int64_t kAhead = 1024;     // prefetch distance in values while something is written

bool in_rows(const Problem& p) { return p.channels_last || p.s < kFloats; }

// At least C, so that empty maps have room for the sums of the channels.
int64_t row_width(const Problem& p) { return p.channels_last || !p.s ? p.c : p.c * p.s; }

// Wider rows fill the vectors already, and packing them would take much memory for sums.
bool is_packed(const Problem& p) { return row_width(p) <= 128; }

// Returns true if training walks several rows together, which keeps a column's coefficients and sums in registers. By
// measurement that is faster if x, z, dz and dx fit in the last-level cache, and for bfloat16. Otherwise memory is the
// limit, and the hardware prefetcher follows one row after the other best.
bool walks_together(const Problem& p) {
    return p.dtype == Dtype::bfloat16 || 4 * values(p) * int64_t{sizeof(float)} <= last_level_cache();
}

struct Rows {
    bool together;
    int64_t run, period;         // adjacent columns of one channel, and the distance between such runs
    int64_t width, count, rest;  // `count` rows of `width` values (whole periods), then `rest` values
    int64_t chunk, chunks;       // rows in a chunk: independent of the number of threads, and so are the sums

    Rows(const Problem& p, bool together)
        : together(together), run(p.channels_last ? 1 : p.s), period(row_width(p)), width(period) {
        const int64_t narrow = together ? kNarrow / 4 : kNarrow;
        if (is_packed(p))
            while (width < narrow || width % kFloats) width += period;
        count = values(p) / width;
        rest = values(p) % width;
        chunks = ceil_div(ceil_div(values(p), kChunkValues), 4) * 4;  // equal shares for up to four threads
        chunks = chunks < 1 ? 1 : chunks > kMaxChunks ? kMaxChunks : chunks;
        chunk = ceil_div(ceil_div(count, chunks), kRows) * kRows;
        chunks = count ? ceil_div(count, chunk) : 1;
    }

    // Calls body(column) for the columns of channel c in order.
    template <class Body>
    void each_column(int64_t c, const Body& body) const {
        for (int64_t begin = c * run; begin < width; begin += period)
            for (int64_t i = begin; i < begin + run; ++i) body(i);
    }

    // Calls body(chunk, first row, last row + 1, values of the incomplete row after them) forward or backward.
    template <class Body>
    void each_chunk(const Problem& p, bool back, const Body& body) const {
        parallel(threads(p), [&](int thread, int of) {
            const int64_t begin = chunks * thread / of, end = chunks * (thread + 1) / of;
            for (int64_t i = begin; i < end; ++i) {
                const int64_t j = back ? begin + end - 1 - i : i, last = (j + 1) * chunk;
                body(j, j * chunk, last < count ? last : count, j + 1 == chunks ? rest : 0);
            }
            fence_streaming_stores();
        });
    }
};

// Coefficient arrays of `width` values, and two arrays of sums for each chunk.
struct Scratch {
    double *first, *second;
    float *mean, *a, *b, *c1, *c0;
    void* memory;

    Scratch(const Rows& r, int64_t chunks) {
        memory = std::malloc(r.width * (2 * chunks * sizeof(double) + 5 * sizeof(float)));
        first = static_cast<double*>(memory);
        second = first + chunks * r.width;
        mean = reinterpret_cast<float*>(second + chunks * r.width);
        a = mean + r.width, b = a + r.width, c1 = b + r.width, c0 = c1 + r.width;
    }
    ~Scratch() { std::free(memory); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    void set(const Rows& r, int64_t c, const Affine& k) {
        r.each_column(c, [&](int64_t i) { mean[i] = k.mean, a[i] = k.a, b[i] = k.b; });
    }
    void set(const Rows& r, int64_t c, const Slopes& s) {
        r.each_column(c, [&](int64_t i) { c1[i] = s.c1, c0[i] = s.c0; });
    }
    Affine affine(int64_t column) const { return {mean[column], a[column], b[column]}; }
    template <int N>
    Coefficients<N> at(int64_t column) const {
        return {load<N>(mean + column), load<N>(a + column), load<N>(b + column)};
    }
    // Adds up all sums of a channel into sums[channel]. The order depends on the shape only.
    void merge(const Rows& r, const Problem& p) {
        merge(first, r, p.c);
        merge(second, r, p.c);
    }
    static void merge(double* sums, const Rows& r, int64_t channels) {
        for (int64_t j = 1; j < r.chunks; ++j)
            for (int64_t i = 0; i < r.width; ++i) sums[i] += sums[j * r.width + i];
        for (int64_t c = 0; c < channels;
             ++c) {  // sums[c] is overwritten after its last use: columns of c start at c or later
            double sum = 0;
            r.each_column(c, [&](int64_t i) { sum += sums[i]; });
            sums[c] = sum;
        }
    }
};

// Adds the terms of K rows of `n` columns to the sums, down the columns. column(Width, c) returns the function that
// computes a term. The reads jump from row to row, so each step prefetches, with next(Width, place), its share of the
// next K rows in memory order.
template <class E, int K, class Column, class Next>
inline void sum_down(double* first, double* second, int64_t row, int64_t width, int64_t n, const Column& column,
                     const Next& next) {
    const int64_t fetched = (row + ceil_div(kFarAhead, K * width) * K) * width;
    sweep<kFloats * sizeof(float) / sizeof(E)>(n, [&](auto w, int64_t c, int64_t seen) {
        Vec<E, w.n> u{}, uv{};
        const auto term = column(w, c);
        next(Width<K * w.n>{}, fetched + c * K);
#pragma GCC unroll 16
        for (int k = 0; k < K; ++k) {
            const auto t = term((row + k) * width + c);
            u += t.u;
            uv = madd<w.n>(t.u, t.v, uv);
        }
        accumulate<w.n>(first + c, seen ? without_first<E, w.n>(u, seen) : u);
        accumulate<w.n>(second + c, seen ? without_first<E, w.n>(uv, seen) : uv);
    });
}

// Does the same row by row, with the sums of the columns in the first-level cache.
template <class E, class Column, class Next>
inline void sum_along(double* first, double* second, int64_t row, int64_t rows, int64_t width, int64_t n,
                      const Column& column, const Next& next) {
    constexpr int N = kFloats * sizeof(float) / sizeof(E);
    alignas(64) E u[kStrip], uv[kStrip];
    const int64_t strips = ceil_div(n, kStrip), wide = ceil_div(ceil_div(n, strips), N) * N;
    for (int64_t begin = 0; begin < n; begin += wide) {
        const int64_t strip = n - begin < wide ? n - begin : wide;
        const auto add = [&](auto is_first, int64_t at) {
            sweep<N>(strip, [&](auto w, int64_t c, int64_t seen) {
                next(w, at + c + kFarAhead);
                const auto t = column(w, begin + c)(at + c);
                const Vec<E, w.n> zero{};
                const int64_t slot = c + seen;  // a vector that overlaps another has slots of its own
                write(u + slot, is_first() ? t.u : load<w.n>(u + slot) + t.u);
                write(uv + slot, madd<w.n>(t.u, t.v, is_first() ? zero : load<w.n>(uv + slot)));
            });
        };
        add(std::true_type{}, row * width + begin);
        for (int64_t k = 1; k < rows; ++k) add(std::false_type{}, (row + k) * width + begin);
        sweep<N>(strip, [&](auto w, int64_t c, int64_t seen) {
            accumulate<w.n>(first + begin + c, without_first<E, w.n>(load<w.n>(u + c + seen), seen));
            accumulate<w.n>(second + begin + c, without_first<E, w.n>(load<w.n>(uv + c + seen), seen));
        });
    }
}

// Sums a chunk of rows.
template <class E, class Column, class Next>
void sum_chunk(const Rows& r, Scratch& s, int64_t chunk, int64_t row, int64_t end, int64_t rest, const Column& column,
               const Next& next) {
    double *first = s.first + chunk * r.width, *second = s.second + chunk * r.width;
    std::memset(first, 0, r.width * sizeof(double));
    std::memset(second, 0, r.width * sizeof(double));
    if (r.together)
        for (; row + kRows <= end; row += kRows) sum_down<E, kRows>(first, second, row, r.width, r.width, column, next);
    for (; row < end; row += kRows)
        sum_along<E>(first, second, row, end - row < kRows ? end - row : kRows, r.width, r.width, column, next);
    if (rest) sum_along<E>(first, second, end, 1, r.width, rest, column, next);
}

// Visits all rows to write them. `back` starts with the last chunk, whose input the previous pass left in the cache.
// column(Width, c) returns the step of a column: step(at, whole) writes the values at `at`. A vector that is not
// `whole` overlaps the one before it and is not aligned. next(Width, place) prefetches what a step reads, except where
// the previous pass left it in the cache. into(Width, place) prefetches what it writes.
template <class Streaming, class Column, class Next, class Into>
void write_rows(const Problem& p, const Rows& r, bool back, Streaming streaming, const Column& column, const Next& next,
                const Into& into) {
    r.each_chunk(p, back, [&](int64_t, int64_t row, int64_t end, int64_t rest) {
        const auto map = [&](auto rows, int64_t n) {
            const int64_t step = rows.n * r.width, begin = row * r.width;
            const int64_t ahead = rows.n == kStreamed ? kFarAhead : kAhead;
            const int64_t later = begin + (rows.n > 1 ? ceil_div(ahead, step) * step : ahead);
            sweep<kFloats>(n, [&](auto w, int64_t c, int64_t seen) {
                const auto write = column(w, c);
                if (rows.n < kWritten || !back) next(Width<rows.n * w.n>{}, later + c * rows.n);
                if (!streaming) into(Width<rows.n * w.n>{}, later + c * rows.n);
#pragma GCC unroll 4
                for (int i = 0; i < rows.n; ++i) write(begin + i * r.width + c, !seen);
            });
        };
        // With streaming stores each wide row is a memory stream of its own, so fewer go together.
        if (r.together && streaming && r.width > 128)
            for (; row + kStreamed <= end; row += kStreamed) map(Width<kStreamed>{}, r.width);
        if (r.together)
            for (; row + kWritten <= end; row += kWritten) map(Width<kWritten>{}, r.width);
        for (; row <= end; ++row) map(Width<1>{}, row < end ? r.width : rest);
    });
}

template <class T, Activation A, class Streaming, class Adds>
void normalize_rows(const Problem& p, const Rows& r, bool back, Streaming streaming, const Scratch& s,
                    const Input<T, Adds>& from, T* z) {
    const T *x = from.x, *residual = from.residual;
    const Adds adds = from.adds;
    write_rows(
        p, r, back, streaming,
        [&](auto w, int64_t c) {
            return [=, slope = p.slope, k = s.at<w.n>(c)](int64_t at, bool whole) {  // scalars stay in registers
                const Input<T, Adds> own{x, residual, nullptr, adds};
                store<w.n>(streaming && whole, z + at, normalized<A, w.n>(own, at, k, slope));
            };
        },
        [&](auto w, int64_t at) {
            // Otherwise, beside streaming stores, the hardware prefetcher alone is faster.
            if (streaming && w.n != kStreamed * kFloats) return;
            prefetch<w.n>(from.x + at);
            if (from.adds) prefetch<w.n>(from.residual + at);
        },
        [&](auto w, int64_t at) { prefetch_for_write<w.n>(z + at); });
}

template <class T, Activation A>
void normalize_rows(const Problem& p, const Rows& r, bool back, bool streaming, const Scratch& s, const void* x,
                    void* z) {
    const T* residual = static_cast<const T*>(p.residual);
    with_flags<A>(p, streaming, [&](auto streams, auto adds) {
        const Input<T, decltype(adds)> from{static_cast<const T*>(x), residual, nullptr, adds};
        normalize_rows<T, A>(p, r, back, streams, s, from, static_cast<T*>(z));
    });
}

// Returns true if float was accurate enough for the sums of all channels.
template <class P>
bool float_sums_suffice(const P& p, const Scratch& s) {
    bool all = true;
    for (int64_t c = 0; c < p.c; ++c) all &= float_sums_suffice(p, s.first[c], s.second[c]);
    return all;
}

// Computes the statistics, and the coefficients that they give.
template <class T>
void sum_deviations(const Forward& f, const Rows& r, Scratch& s) {
    const T* x = static_cast<const T*>(f.x);
    for (int64_t c = 0; c < f.c; ++c) s.set(r, c, {typical_value(f, x, c), 0, 0});
    const auto sum = [&](auto e) {
        using E = decltype(e);
        r.each_chunk(f, false, [&](int64_t chunk, int64_t row, int64_t end, int64_t rest) {
            sum_chunk<E>(
                r, s, chunk, row, end, rest,
                [&](auto w, int64_t c) {
                    const auto shift = as<E, w.n>(load<w.n>(s.mean + c));
                    return [=](int64_t at) { return deviation<E, w.n>(x + at, shift); };
                },
                [&](auto w, int64_t at) { prefetch<w.n>(x + at); });
        });
        s.merge(r, f);
    };
    sum(float{});
    if (!float_sums_suffice(f, s)) sum(double{});
    for (int64_t c = 0; c < f.c; ++c) s.set(r, c, finish(f, c, s.mean[c * r.run], s.first[c], s.second[c]));
}

template <class T, Activation A>
bool forward_rows(const Forward& f, bool streaming) {
    const Rows r(f, walks_together(f));
    Scratch s(r, r.chunks);
    if (!s.memory) return false;
    sum_deviations<T>(f, r, s);
    if (f.z) normalize_rows<T, A>(f, r, true, streaming, s, f.x, f.z);
    return true;
}

template <class T, class Adds, class W>
inline void fetch(const Input<T, Adds>& from, W w, int64_t at) {
    prefetch<w.n>(from.x + at);
    prefetch<w.n>(from.dz + at);
    if (from.adds) prefetch<w.n>(from.residual + at);
}

template <class T, Activation A, class Adds>
void sum_gradients(const Backward& b, const Rows& r, Scratch& s, const Input<T, Adds>& from) {
    const T *x = from.x, *residual = from.residual, *dz = from.dz;
    const Adds adds = from.adds;
    const auto sum = [&](auto e) {
        using E = decltype(e);
        r.each_chunk(b, false, [&](int64_t chunk, int64_t row, int64_t end, int64_t rest) {
            sum_chunk<E>(
                r, s, chunk, row, end, rest,
                [&](auto w, int64_t c) {
                    return [=, slope = b.slope, kind = b.activation, k = s.at<w.n>(c)](int64_t at) {
                        const Input<T, Adds> own{x, residual, dz, adds};
                        return gradient<E, A, w.n>(own, at, k, kind, slope);
                    };
                },
                [&](auto w, int64_t at) __attribute__((always_inline)) { fetch(from, w, at); });
        });
        s.merge(r, b);
    };
    if (!b.total) {
        sum(float{});
        if (!float_sums_suffice(b, s)) sum(double{});
    }
    for (int64_t c = 0; c < b.c; ++c) s.set(r, c, finish(b, c, s.affine(c * r.run), s.first[c], s.second[c]));
}

template <class T, Activation A, class Streaming, class Adds>
void write_gradients(const Backward& b, const Rows& r, const Scratch& s, Streaming streaming,
                     const Input<T, Adds>& from) {
    T *dx = static_cast<T*>(b.dx), *dresidual = static_cast<T*>(b.dresidual);
    const T *x = from.x, *residual = from.residual, *dz = from.dz;
    const Adds adds = from.adds;
    write_rows(
        b, r, true, streaming,
        [&](auto w, int64_t c) {
            return [=, slope = b.slope, k = s.at<w.n>(c), c1 = load<w.n>(s.c1 + c), c0 = load<w.n>(s.c0 + c)](
                       int64_t at, bool whole) {
                const Input<T, Adds> own{x, residual, dz, adds};
                const Gradients<w.n> d = gradients<A, w.n>(own, at, k, c1, c0, slope);
                store<w.n>(streaming && whole, dx + at, d.dx);
                if (adds && dresidual) store<w.n>(streaming && whole, dresidual + at, d.dy);
            };
        },
        [&](auto w, int64_t at) __attribute__((always_inline)) { fetch(from, w, at); },  // GCC would not inline it
        [&](auto w, int64_t at) {
            prefetch_for_write<w.n>(dx + at);
            if (from.adds && dresidual) prefetch_for_write<w.n>(dresidual + at);
        });
}

template <class T, Activation A>
bool backward_rows(const Backward& b, bool streaming) {
    const Rows r(b, walks_together(b));
    Scratch s(r, r.chunks);
    if (!s.memory) return false;
    for (int64_t c = 0; c < b.c; ++c) s.set(r, c, affine(b, c, b.mean[c], b.rstd[c]));
    const T *x = static_cast<const T*>(b.x), *dz = static_cast<const T*>(b.dz);
    const T* residual = static_cast<const T*>(b.residual);
    with_residual<A>(b, [&](auto adds) {
        const Input<T, decltype(adds)> from{x, residual, dz, adds};
        sum_gradients<T, A>(b, r, s, from);
        if (b.dx) with_flag<A>(streaming, [&](auto streams) { write_gradients<T, A>(b, r, s, streams, from); });
    });
    return true;
}

template <class T, Activation A>
bool inference_rows(const Inference& f, bool streaming) {
    const Rows r(f, f.dtype == Dtype::bfloat16);  // float32 is read once, perhaps from memory: row by row
    Scratch s(r, 0);
    if (!s.memory) return false;
    for (int64_t c = 0; c < f.c; ++c) s.set(r, c, affine(f, c, f.mean[c], f.rstd[c]));
    normalize_rows<T, A>(f, r, false, streaming, s, f.x, f.z);
    return true;
}

}  // namespace
