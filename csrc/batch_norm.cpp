#include "batch_norm.hpp"

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "simd.hpp"
#include "threads.hpp"

namespace {

using namespace batchnorm;

constexpr int64_t kSerial = 32768;         // values below which waking the pool costs more than it saves
constexpr int64_t kGroupBytes = 3 << 17;   // of the inputs of a group of maps: two groups and an output fit 1 MiB
constexpr int64_t kMaxGroup = 64;          // maps
constexpr int64_t kRun = 256;              // values that share registers of sums; four times as many at most
constexpr int64_t kChunkValues = 1 << 15;  // of a chunk of rows
constexpr int64_t kMaxChunks = 64;
constexpr int kRows = 8;                   // summed in float before their sum is added in double
constexpr int kWritten = 4;                // rows that are written together,
constexpr int kStreamed = 2;               // and of wide ones, from memory and past the cache
constexpr int64_t kNarrow = 256;           // columns of a row below which several places share one
constexpr int64_t kStrip = 512;            // columns whose sums are kept in the first-level cache
constexpr int64_t kFarAhead = 4096;        // values from what is read to what is fetched: where nothing is written,
constexpr int64_t kAhead = 1024;           // and where something is written

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t values(const Problem& p) { return p.n * p.c * p.s; }
int threads(const Problem& p) { return values(p) < kSerial ? 1 : p.threads; }

template <class T>
bool outgrows_cache(const Problem& p) {
    return values(p) * int64_t{sizeof(T)} > last_level_cache();
}

// ---- The math of one value: y = (x - mean) * a + b, z = g(y) ----

struct Affine {
    float mean, a, b;
};

// What float32 loses of the mean goes into b; at mean 1e4 and std 1e-2 it is a twentieth of a standard deviation.
Affine affine(const Problem& p, int64_t c, double mean, double rstd) {
    const double a = (p.gamma ? p.gamma[c] : 1.0) * rstd;
    const float near = static_cast<float>(mean);
    const double rest = std::isfinite(mean) ? mean - near : 0.0;
    return {near, static_cast<float>(a), static_cast<float>((p.beta ? p.beta[c] : 0.0) - rest * a)};
}

template <Activation A, int N>
inline Vec<float, N> activate(Vec<float, N> y, float slope) {
    const Vec<float, N> zero{};
    if constexpr (A == Activation::relu) return positive_part<N>(y);
    if constexpr (A == Activation::leaky_relu) return y < zero ? y * slope : y;
    return y;
}

// g * dz, with g' at y. The mask is recomputed from y, by the expression of the forward.
template <Activation A, int N>
inline Vec<float, N> gate(Vec<float, N> dz, Vec<float, N> y, float slope) {
    const Vec<float, N> zero{};
    if constexpr (A == Activation::relu) return y <= zero ? zero : dz;
    if constexpr (A == Activation::leaky_relu) return y > zero ? dz : dz * slope;
    return dz;
}

template <int N>
struct Coefficients {
    Vec<float, N> mean, a, b;
};

template <Activation A, int N, class T>
inline Vec<float, N> normalized(const T* x, const Coefficients<N>& k, float slope) {
    return activate<A, N>(madd<N>(load<N>(x) - k.mean, k.a, k.b), slope);
}

// Two sums belong to each channel: of u and of u * v. Short runs are summed in float, the runs in double. Where that is
// not enough (see `good`) everything is summed again in double: E is float or double.
template <class E, int N>
struct Term {
    Vec<E, N> u, v;
};

// Forward: deviations from a value of the channel's own, `shift`, so that little cancels in the variance.
template <class E, int N, class T>
inline Term<E, N> deviation(const T* x, Vec<E, N> shift) {
    const Vec<E, N> d = as<E, N>(load<N>(x)) - shift;
    return {d, d};
}

// Backward: dy, and dy * (x - mean).
template <class E, Activation A, int N, class T>
inline Term<E, N> gradient(const T* x, const T* dz, const Coefficients<N>& k, float slope) {
    const Vec<float, N> d = load<N>(x) - k.mean;
    return {as<E, N>(gate<A, N>(load<N>(dz), madd<N>(d, k.a, k.b), slope)), as<E, N>(d)};
}

// dx = a * (dy - mean(dy) - x_hat * mean(dy * x_hat)) = a * dy + c1 * (x - mean) + c0.
template <Activation A, int N, class T>
inline Vec<float, N> input_gradient(const T* x, const T* dz, const Coefficients<N>& k, Vec<float, N> c1,
                                    Vec<float, N> c0, float slope) {
    const Vec<float, N> d = load<N>(x) - k.mean;
    const Vec<float, N> dy = gate<A, N>(load<N>(dz), madd<N>(d, k.a, k.b), slope);
    return madd<N>(k.a, dy, madd<N>(c1, d, c0));
}

// A value of the channel near most others: the median of three from inside the maps of three images.
template <class T>
float typical_value(const Problem& p, const T* x, int64_t c) {
    if (!values(p)) return 0;
    const auto at = [&](int64_t n, int64_t s) {
        return load<1>(x + (p.channels_last ? (n * p.s + s) * p.c + c : (n * p.c + c) * p.s + s))[0];
    };
    const float first = at(0, p.s / 2), second = at(p.n / 2, p.s / 3), third = at(p.n - 1, p.s - 1 - p.s / 3);
    const float low = first < second ? first : second, high = first < second ? second : first;
    const float median = third < low ? low : third > high ? high : third;
    return std::isfinite(median) ? median : 0.0f;  // an infinite shift would turn an infinite mean into NaN
}

// Whether float held the sums: nothing overflowed or vanished, and the shift was within four standard deviations of the
// mean, so that the variance lost less than five bits of it.
bool good(const Forward& f, double first, double second) {
    const double count = static_cast<double>(f.n * f.s), mean = first / count, var = second / count - mean * mean;
    const bool resolved = mean * mean <= 16 * var + 1e-30 && (var > 1e-30 || f.eps > 1e-24);
    return std::isfinite(first) && std::isfinite(second) && resolved;
}

bool good(const Backward&, double first, double second) { return std::isfinite(first) && std::isfinite(second); }

// The channel's statistics from its two sums, written to their places.
Affine finish(const Forward& f, int64_t c, double shift, double first, double second) {
    const double count = static_cast<double>(f.n * f.s);
    const double mean = shift + first / count;
    double m2 = second - first * first / count;
    if (m2 < 0) m2 = 0;
    const double rstd = 1.0 / std::sqrt(m2 / count + f.eps);
    f.mean[c] = static_cast<float>(mean);
    f.var[c] = static_cast<float>(m2 / (count - 1));
    f.saved_mean[c] = mean;
    f.saved_rstd[c] = rstd;
    return affine(f, c, mean, rstd);
}

struct Slopes {
    float c1, c0;
};

// dgamma and dbeta from the two sums, written to their places, and the coefficients of dx.
Slopes finish(const Backward& b, int64_t c, const Affine& k, double first, double second) {
    const double count = static_cast<double>(b.n * b.s);
    const double rest = std::isfinite(b.mean[c]) ? b.mean[c] - k.mean : 0.0;
    const double dgamma = b.rstd[c] * (second - rest * first);
    if (b.dgamma) b.dgamma[c] = static_cast<float>(dgamma);
    if (b.dbeta) b.dbeta[c] = static_cast<float>(first);
    const double a = (b.gamma ? b.gamma[c] : 1.0) * b.rstd[c];
    const double c1 = -a * b.rstd[c] * dgamma / count;
    return {static_cast<float>(c1), static_cast<float>(-a * first / count - c1 * rest)};
}

// ---- (N, C, S): a map's S values side by side. A group of maps at a time, all its passes while it is in cache ----

// Of one channel, lane by lane.
struct Sums {
    double first[kFloats] = {}, second[kFloats] = {};

    template <class E, int N>
    void add(const Vec<E, N>& u, const Vec<E, N>& uv) {
        accumulate<N>(first, u);
        accumulate<N>(second, uv);
    }
    static double total(const double* lanes) {
        double sum = 0;
        for (int i = 0; i < kFloats; ++i) sum += lanes[i];
        return sum;
    }
};

// Fetches N values into the second-level cache.
template <int N, class T>
inline void fetch(const T* p) {
    constexpr int line = 64 / sizeof(T);
    for (int i = 0; i < N; i += line) __builtin_prefetch(p + i, 0, 2);
}

// Fetches N values that will be written, where the target has an instruction for that; else as if to be read.
template <int N, class T>
inline void own(T* p) {
    constexpr int line = 64 / sizeof(T);
    for (int i = 0; i < N; i += line) __builtin_prefetch(p + i, 1, 2);
}

// A few registers of sums, in which short runs come together.
template <class E, int N>
struct Partial {
    static constexpr int chains = 4;  // enough to hide the latency of an addition
    Vec<E, N> first[chains]{}, second[chains]{};

    void add(int k, const Term<E, N>& t) {
        first[k] += t.u;
        second[k] = madd<N>(t.u, t.v, second[k]);
    }
    void flush(Sums& sums) const {
        sums.add<E, N>((first[0] + first[1]) + (first[2] + first[3]),
                       (second[0] + second[1]) + (second[2] + second[3]));
    }
};

// Adds the terms of a run of n values; term(Width, i) gives them, next(i) fetches what will be needed later.
template <class E, int N, class TermAt, class Next>
inline void sum_run(int64_t n, Partial<E, N>& sums, const TermAt& term, const Next& next) {
    constexpr int chains = Partial<E, N>::chains;
    int64_t i = 0;
    for (; i + chains * N <= n; i += chains * N) {
#pragma GCC unroll 4
        for (int k = 0; k < chains; ++k) {
            next(i + k * N);
            sums.add(k, term(Width<N>{}, i + k * N));
        }
    }
    for (; i + N <= n; i += N) {
        next(i);
        sums.add(0, term(Width<N>{}, i));
    }
    if (i == n) return;
    next(i);
    if (n >= N) {  // the last N values again, of which those already summed count as zero
        Term<E, N> t = term(Width<N>{}, n - N);
        t.u = without_first<E, N>(t.u, N - (n - i));
        return sums.add(1, t);
    }
    Term<E, N> t{};
    for (int lane = 0; i < n; ++i, ++lane) {
        const Term<E, 1> one = term(Width<1>{}, i);
        t.u[lane] = one.u[0];
        t.v[lane] = one.v[0];
    }
    sums.add(1, t);
}

// In whole vectors, of which the last may overlap the one before it: n is kFloats at least.
template <bool PastCache, class T, class ValueAt>
inline void map_run(T* out, int64_t n, const ValueAt& value) {
    constexpr int N = kFloats;
    int64_t i = 0;
    for (; i + N <= n; i += N) store<PastCache, N>(out + i, value(Width<N>{}, i));
    if (i < n) store<false, N>(out + n - N, value(Width<N>{}, n - N));
}

template <int N>
inline Coefficients<N> spread(const Affine& k) {
    return {splat<N>(k.mean), splat<N>(k.a), splat<N>(k.b)};
}

// body(c0, c1, to_next) for groups of neighbouring maps, as many as fit the cache; a map of the thread's next group,
// which is read while this one is written, lies `to_next` values behind, or 0 where none follows.
template <class Body>
void each_group(const Problem& p, int64_t bytes, const Body& body) {
    const int count = threads(p);
    const int64_t map_bytes = p.n * p.s * bytes;
    const int64_t fit = map_bytes * kMaxGroup < kGroupBytes ? kMaxGroup : kGroupBytes / map_bytes;
    int64_t groups = ceil_div(ceil_div(p.c, fit < 1 ? 1 : fit), count) * count;  // as much for each thread
    groups = groups < p.c ? groups : p.c;
    parallel(count, [&](int thread, int of) {
        const int64_t begin = groups * thread / of, end = groups * (thread + 1) / of;
        for (int64_t g = begin; g < end; ++g) {
            const int64_t c0 = g * p.c / groups, c1 = (g + 1) * p.c / groups;
            body(c0, c1, g + 1 < end ? (c1 - c0) * p.s : 0);
        }
        end_of_stream();
    });
}

// Writes the maps [c0, c1), of the last image first: what was read last is still nearest. While a map of one image is
// written, the same map of the image to come is fetched for writing; after the last image, of the next group.
// value(Width, channel, place) gives what is written.
template <bool PastCache, class T, class ValueAt>
void write_maps(const Problem& p, int64_t c0, int64_t c1, T* out, const ValueAt& value) {
    for (int64_t n = p.n - 1; n >= 0; --n) {
        const int64_t later = (n ? -p.c : (p.n - 1) * p.c + c1 - c0) * p.s;
        for (int64_t c = c0; c < c1; ++c) {
            const int64_t at = (n * p.c + c) * p.s;
            map_run<PastCache>(out + at, p.s, [&](auto w, int64_t i) {
                if constexpr (!PastCache) own<w.n>(out + at + i + later);
                return value(w, c, at + i);
            });
        }
    }
}

// The sums of the maps [c0, c1), image by image as the memory lies; short maps of a few images share their registers.
template <class E, int N, class TermAt, class Next>
void sum_maps(const Problem& p, int64_t c0, int64_t c1, Sums* sums, const TermAt& term, const Next& next) {
    const int64_t images = p.s < kRun ? kRun / p.s : 1;
    for (int64_t n = 0; n < p.n; n += images)
        for (int64_t c = c0; c < c1; ++c)
            for (int64_t i = 0; i < p.s; i += 4 * kRun) {
                Partial<E, N> partial;
                for (int64_t m = n; m < n + images && m < p.n; ++m) {
                    const int64_t at = (m * p.c + c) * p.s + i;
                    const int64_t later = at + (m + images < p.n ? images * p.c * p.s : 0);
                    sum_run<E, N>(
                        p.s - i < 4 * kRun ? p.s - i : 4 * kRun, partial,
                        [&](auto w, int64_t j) { return term(w, c, at + j); }, [&](int64_t j) { next(later + j); });
                }
                partial.flush(sums[c - c0]);
            }
}

template <class T, Activation A, bool PastCache>
void forward_maps(const Forward& f) {
    const T* x = static_cast<const T*>(f.x);
    T* z = static_cast<T*>(f.z);
    each_group(f, sizeof(T), [&](int64_t c0, int64_t c1, int64_t to_next) {
        float shift[kMaxGroup];
        Affine k[kMaxGroup];
        const auto sum = [&](auto e, int64_t from, int64_t to, Sums* sums) {
            using E = decltype(e);
            constexpr int N = kFloats * sizeof(float) / sizeof(E);
            sum_maps<E, N>(
                f, from, to, sums,
                [&](auto w, int64_t c, int64_t at) {
                    return deviation<E, w.n>(x + at, Vec<E, w.n>{} + E(shift[c - c0]));
                },
                [&](int64_t at) { fetch<N>(x + at); });
        };
        Sums sums[kMaxGroup];
        for (int64_t c = c0; c < c1; ++c) shift[c - c0] = typical_value(f, x, c);
        sum(float{}, c0, c1, sums);
        for (int64_t c = c0; c < c1; ++c) {
            Sums& s = sums[c - c0];
            if (!good(f, Sums::total(s.first), Sums::total(s.second))) {
                s = Sums{};
                sum(double{}, c, c + 1, &s);
            }
            k[c - c0] = finish(f, c, shift[c - c0], Sums::total(s.first), Sums::total(s.second));
        }
        write_maps<PastCache>(f, c0, c1, z, [&](auto w, int64_t c, int64_t at) {
            fetch<w.n>(x + at + to_next);
            return normalized<A, w.n>(x + at, spread<w.n>(k[c - c0]), f.slope);
        });
    });
}

template <class T, Activation A, bool PastCache>
void backward_maps(const Backward& b) {
    const T* x = static_cast<const T*>(b.x);
    const T* dz = static_cast<const T*>(b.dz);
    T* dx = static_cast<T*>(b.dx);
    each_group(b, 2 * sizeof(T), [&](int64_t c0, int64_t c1, int64_t to_next) {
        Sums sums[kMaxGroup];
        Affine k[kMaxGroup];
        Slopes slopes[kMaxGroup];
        const auto sum = [&](auto e, int64_t from, int64_t to, Sums* into) {
            using E = decltype(e);
            constexpr int N = kFloats * sizeof(float) / sizeof(E);
            sum_maps<E, N>(
                b, from, to, into,
                [&](auto w, int64_t c, int64_t at) {
                    return gradient<E, A, w.n>(x + at, dz + at, spread<w.n>(k[c - c0]), b.slope);
                },
                [&](int64_t at) {
                    fetch<N>(x + at);
                    fetch<N>(dz + at);
                });
        };
        for (int64_t c = c0; c < c1; ++c) k[c - c0] = affine(b, c, b.mean[c], b.rstd[c]);
        sum(float{}, c0, c1, sums);
        for (int64_t c = c0; c < c1; ++c) {
            Sums& s = sums[c - c0];
            if (!good(b, Sums::total(s.first), Sums::total(s.second))) {
                s = Sums{};
                sum(double{}, c, c + 1, &s);
            }
            slopes[c - c0] = finish(b, c, k[c - c0], Sums::total(s.first), Sums::total(s.second));
        }
        if (!dx) return;
        write_maps<PastCache>(b, c0, c1, dx, [&](auto w, int64_t c, int64_t at) {
            const Slopes& m = slopes[c - c0];
            fetch<w.n>(x + at + to_next);
            fetch<w.n>(dz + at + to_next);
            return input_gradient<A, w.n>(x + at, dz + at, spread<w.n>(k[c - c0]), splat<w.n>(m.c1),
                                          splat<w.n>(m.c0), b.slope);
        });
    });
}

template <class T, Activation A, bool PastCache>
bool inference_maps(const Inference& f) {
    const T* x = static_cast<const T*>(f.x);
    T* z = static_cast<T*>(f.z);
    Affine* k = static_cast<Affine*>(std::malloc(f.c * sizeof(Affine)));
    if (!k) return false;
    for (int64_t c = 0; c < f.c; ++c) k[c] = affine(f, c, f.mean[c], 1.0 / std::sqrt(f.var[c] + f.eps));
    const int64_t maps = f.n * f.c;
    parallel(threads(f), [&](int thread, int count) {
        for (int64_t map = maps * thread / count, end = maps * (thread + 1) / count; map < end; ++map) {
            const T* values = x + map * f.s;
            const auto of_map = spread<kFloats>(k[map % f.c]);
            // In order: fetching ahead would cost time. By value: what a store may change is read again after it.
            map_run<PastCache>(z + map * f.s, f.s, [=, slope = f.slope](auto w, int64_t i) {
                return normalized<A, w.n>(values + i, of_map, slope);
            });
        }
        end_of_stream();
    });
    std::free(k);
    return true;
}

// ---- Rows in which every column belongs to one channel, always the same: (R, C), the C values of a place side by
// side, and (N, C, S) with maps shorter than a vector, all the maps of an image side by side. Narrow rows are folded:
// several make one ----

bool in_rows(const Problem& p) { return p.channels_last || p.s < kFloats; }

int64_t row_width(const Problem& p) { return p.channels_last ? p.c : p.c * p.s; }

// More are wide enough, and folding them would take much room for sums.
bool folds(const Problem& p) { return row_width(p) <= 128; }

// How rows are walked in training, by measurement. What comes from memory waits for it: one row after the other is what
// the hardware's prefetcher follows. Where x, z, dz and dx fit the last-level cache, and where half the bytes wait for
// the arithmetic as well, rows are walked together: what belongs to a column is loaded once for them, and its sums stay
// in registers.
bool walks_together(const Problem& p) {
    return p.dtype == Dtype::bfloat16 || 4 * values(p) * int64_t{sizeof(float)} <= last_level_cache();
}

struct Rows {
    bool together;
    int64_t run, period;         // columns of a channel side by side, and from one such run of it to the next
    int64_t width, count, rest;  // `count` rows of `width` values, a few periods, then `rest` values
    int64_t chunk, chunks;       // rows of a chunk: the same for any number of threads, and so are the sums

    Rows(const Problem& p, bool together)
        : together(together), run(p.channels_last ? 1 : p.s), period(row_width(p)), width(period) {
        const int64_t narrow = together ? kNarrow / 4 : kNarrow;
        if (folds(p))
            while (width < narrow || width % kFloats) width += period;
        count = values(p) / width;
        rest = values(p) % width;
        chunks = ceil_div(ceil_div(values(p), kChunkValues), 4) * 4;  // as much for each of a few threads
        chunks = chunks < 1 ? 1 : chunks > kMaxChunks ? kMaxChunks : chunks;
        chunk = ceil_div(ceil_div(count, chunks), kRows) * kRows;
        chunks = count ? ceil_div(count, chunk) : 1;
    }

    // body(column) for the columns of channel c, the first of them first.
    template <class Body>
    void each_column(int64_t c, const Body& body) const {
        for (int64_t begin = c * run; begin < width; begin += period)
            for (int64_t i = begin; i < begin + run; ++i) body(i);
    }

    // body(chunk, first row, last row + 1, values of the incomplete row behind them), forth or back.
    template <class Body>
    void each_chunk(const Problem& p, bool back, const Body& body) const {
        parallel(threads(p), [&](int thread, int of) {
            const int64_t begin = chunks * thread / of, end = chunks * (thread + 1) / of;
            for (int64_t i = begin; i < end; ++i) {
                const int64_t j = back ? begin + end - 1 - i : i, last = (j + 1) * chunk;
                body(j, j * chunk, last < count ? last : count, j + 1 == chunks ? rest : 0);
            }
            end_of_stream();
        });
    }
};

// Arrays of `width` values each, and two of sums for each chunk.
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
    // Gathers all sums of a channel in its place, in an order that nothing but the shape decides.
    void merge(const Rows& r, const Problem& p) {
        merge(first, r, p.c);
        merge(second, r, p.c);
    }
    static void merge(double* sums, const Rows& r, int64_t channels) {
        for (int64_t j = 1; j < r.chunks; ++j)
            for (int64_t i = 0; i < r.width; ++i) sums[i] += sums[j * r.width + i];
        for (int64_t c = 0; c < channels; ++c) {  // no channel's columns begin before its place
            double sum = 0;
            r.each_column(c, [&](int64_t i) { sum += sums[i]; });
            sums[c] = sum;
        }
    }
};

// Adds the terms of K rows of `n` columns to the sums: column(Width, c) gives the term at a place. Down the columns
// the memory is read in jumps; so each step fetches, by next(Width, place), its share of K rows further on, in order.
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

// The same for a few rows, one after the other; meanwhile the columns' sums wait in the first-level cache.
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
                const int64_t own = c + seen;  // a place of their own for the sums of a vector that overlaps another
                write(u + own, is_first.n ? t.u : load<w.n>(u + own) + t.u);
                write(uv + own, madd<w.n>(t.u, t.v, is_first.n ? zero : load<w.n>(uv + own)));
            });
        };
        add(Width<true>{}, row * width + begin);
        for (int64_t k = 1; k < rows; ++k) add(Width<false>{}, (row + k) * width + begin);
        sweep<N>(strip, [&](auto w, int64_t c, int64_t seen) {
            accumulate<w.n>(first + begin + c, without_first<E, w.n>(load<w.n>(u + c + seen), seen));
            accumulate<w.n>(second + begin + c, without_first<E, w.n>(load<w.n>(uv + c + seen), seen));
        });
    }
}

// The sums of a chunk of rows.
template <class E, class Column, class Next>
void sum_chunk(const Rows& r, Scratch& s, int64_t chunk, int64_t row, int64_t end, int64_t rest, const Column& column,
               const Next& next) {
    double *first = s.first + chunk * r.width, *second = s.second + chunk * r.width;
    std::memset(first, 0, r.width * sizeof(double));
    std::memset(second, 0, r.width * sizeof(double));
    if (r.together)
        for (; row + kRows <= end; row += kRows)
            sum_down<E, kRows>(first, second, row, r.width, r.width, column, next);
    for (; row < end; row += kRows)
        sum_along<E>(first, second, row, end - row < kRows ? end - row : kRows, r.width, r.width, column, next);
    if (rest) sum_along<E>(first, second, end, 1, r.width, rest, column, next);
}

// Writes all rows, the last chunk first if `back`, to find what a pass before left in cache: column(Width, c) gives what
// is to be written at a place, next(Width, place) fetches what it will need, where memory is waited for: not where rows
// that fit the cache were read a pass before.
template <bool PastCache, class T, class Column, class Next>
void write_rows(const Problem& p, const Rows& r, bool back, T* out, const Column& column, const Next& next) {
    r.each_chunk(p, back, [&](int64_t, int64_t row, int64_t end, int64_t rest) {
        const auto map = [&](auto rows, int64_t n) {
            const int64_t step = rows.n * r.width, begin = row * r.width;
            const int64_t ahead = rows.n == kStreamed ? kFarAhead : kAhead;
            const int64_t later = begin + (rows.n > 1 ? ceil_div(ahead, step) * step : ahead);
            sweep<kFloats>(n, [&](auto w, int64_t c, int64_t seen) {
                const auto value = column(w, c);
                if (rows.n < kWritten || !back) next(Width<rows.n * w.n>{}, later + c * rows.n);
                if constexpr (!PastCache) own<rows.n * w.n>(out + later + c * rows.n);
#pragma GCC unroll 4
                for (int i = 0; i < rows.n; ++i) {
                    const int64_t at = begin + i * r.width + c;
                    if (seen) store<false, w.n>(out + at, value(at));  // which is not aligned
                    else store<PastCache, w.n>(out + at, value(at));
                }
            });
        };
        // From memory and back to it each row is a stream of its own, but for narrow rows, which lie close together.
        if (r.together && PastCache && r.width > 128)
            for (; row + kStreamed <= end; row += kStreamed) map(Width<kStreamed>{}, r.width);
        if (r.together)
            for (; row + kWritten <= end; row += kWritten) map(Width<kWritten>{}, r.width);
        for (; row <= end; ++row) map(Width<1>{}, row < end ? r.width : rest);
    });
}

template <class T, Activation A, bool PastCache>
void normalize_rows(const Problem& p, const Rows& r, bool back, const Scratch& s, const T* x, T* z) {
    write_rows<PastCache>(
        p, r, back, z,
        [&](auto w, int64_t c) {
            return [=, slope = p.slope, k = s.at<w.n>(c)](int64_t at) { return normalized<A, w.n>(x + at, k, slope); };
        },
        [&](auto w, int64_t at) {  // else, beside stores past the cache, the hardware's own prefetcher is the faster one
            if constexpr (!PastCache || w.n == kStreamed * kFloats) fetch<w.n>(x + at);
        });
}

// Whether all channels' sums are good.
template <class P>
bool good(const P& p, const Scratch& s) {
    bool all = true;
    for (int64_t c = 0; c < p.c; ++c) all &= good(p, s.first[c], s.second[c]);
    return all;
}

template <class T, Activation A, bool PastCache>
bool forward_rows(const Forward& f) {
    const T* x = static_cast<const T*>(f.x);
    const Rows r(f, walks_together(f));
    Scratch s(r, r.chunks);
    if (!s.memory) return false;
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
                [&](auto w, int64_t at) { fetch<w.n>(x + at); });
        });
        s.merge(r, f);
    };
    sum(float{});
    if (!good(f, s)) sum(double{});
    for (int64_t c = 0; c < f.c; ++c) s.set(r, c, finish(f, c, s.mean[c * r.run], s.first[c], s.second[c]));
    normalize_rows<T, A, PastCache>(f, r, true, s, x, static_cast<T*>(f.z));
    return true;
}

template <class T, Activation A, bool PastCache>
bool backward_rows(const Backward& b) {
    const T* x = static_cast<const T*>(b.x);
    const T* dz = static_cast<const T*>(b.dz);
    const Rows r(b, walks_together(b));
    Scratch s(r, r.chunks);
    if (!s.memory) return false;
    for (int64_t c = 0; c < b.c; ++c) s.set(r, c, affine(b, c, b.mean[c], b.rstd[c]));
    const auto next = [&](auto w, int64_t at) __attribute__((always_inline)) {  // GCC else calls it
        fetch<w.n>(x + at);
        fetch<w.n>(dz + at);
    };
    const auto sum = [&](auto e) {
        using E = decltype(e);
        r.each_chunk(b, false, [&](int64_t chunk, int64_t row, int64_t end, int64_t rest) {
            sum_chunk<E>(
                r, s, chunk, row, end, rest,
                [&](auto w, int64_t c) {
                    return [=, slope = b.slope, k = s.at<w.n>(c)](int64_t at) {
                        return gradient<E, A, w.n>(x + at, dz + at, k, slope);
                    };
                },
                next);
        });
        s.merge(r, b);
    };
    sum(float{});
    if (!good(b, s)) sum(double{});
    for (int64_t c = 0; c < b.c; ++c) s.set(r, c, finish(b, c, s.affine(c * r.run), s.first[c], s.second[c]));
    if (!b.dx) return true;
    write_rows<PastCache>(
        b, r, true, static_cast<T*>(b.dx),
        [&](auto w, int64_t c) {
            return [=, slope = b.slope, k = s.at<w.n>(c), c1 = load<w.n>(s.c1 + c), c0 = load<w.n>(s.c0 + c)](
                       int64_t at) { return input_gradient<A, w.n>(x + at, dz + at, k, c1, c0, slope); };
        },
        next);
    return true;
}

template <class T, Activation A, bool PastCache>
bool inference_rows(const Inference& f) {
    const Rows r(f, f.dtype == Dtype::bfloat16);  // read once: float32 never together, it may come from memory
    Scratch s(r, 0);
    if (!s.memory) return false;
    for (int64_t c = 0; c < f.c; ++c) s.set(r, c, affine(f, c, f.mean[c], 1.0 / std::sqrt(f.var[c] + f.eps)));
    normalize_rows<T, A, PastCache>(f, r, false, s, static_cast<const T*>(f.x), static_cast<T*>(f.z));
    return true;
}

// ---- From a problem to its loops ----

template <class T, Activation A, bool PastCache>
bool run(const Forward& f) {
    if (in_rows(f)) return forward_rows<T, A, PastCache>(f);
    forward_maps<T, A, PastCache>(f);
    return true;
}

template <class T, Activation A, bool PastCache>
bool run(const Backward& b) {
    if (in_rows(b)) return backward_rows<T, A, PastCache>(b);
    backward_maps<T, A, PastCache>(b);
    return true;
}

template <class T, Activation A, bool PastCache>
bool run(const Inference& f) {
    return in_rows(f) ? inference_rows<T, A, PastCache>(f) : inference_maps<T, A, PastCache>(f);
}

const void* output(const Forward& f) { return f.z; }
const void* output(const Backward& b) { return b.dx; }
const void* output(const Inference& f) { return f.z; }

template <class T, Activation A, class P>
bool choose_store(const P& p) {
    // What is written past the cache has to fill whole lines: every row or map has to be aligned.
    const int64_t length = !in_rows(p) ? p.s : folds(p) ? kFloats : row_width(p);
    const bool aligned = (reinterpret_cast<uintptr_t>(output(p)) | length * sizeof(T)) % (kFloats * sizeof(T)) == 0;
    return aligned && outgrows_cache<T>(p) ? run<T, A, true>(p) : run<T, A, false>(p);
}

template <class T, class P>
bool choose_activation(const P& p) {
    switch (p.activation) {
        case Activation::relu: return choose_store<T, Activation::relu>(p);
        case Activation::leaky_relu: return choose_store<T, Activation::leaky_relu>(p);
        default: return choose_store<T, Activation::none>(p);
    }
}

template <class P>
bool choose(const P& p) {
    if (!p.c) return true;
    return p.dtype == Dtype::bfloat16 ? choose_activation<bfloat16>(p) : choose_activation<float>(p);
}

}  // namespace

namespace batchnorm {

extern const Kernels BATCHNORM_KERNELS;
const Kernels BATCHNORM_KERNELS{BATCHNORM_TARGET, choose<Forward>, choose<Backward>, choose<Inference>};

}  // namespace batchnorm
