// (N, C, S): a map's S values side by side. A group of maps at a time, all its passes while it is in cache.
#pragma once

#include <cstdlib>

#include "math.hpp"
#include "threads.hpp"

namespace {

constexpr int64_t kGroupBytes = 3 << 17;  // of the inputs of a group of maps: two groups and an output fit 1 MiB
constexpr int64_t kMaxGroup = 64;         // maps
constexpr int64_t kRun = 1024;            // values, at most, that share registers of sums

// Of one channel, lane by lane.
struct Sums {
    double first[kFloats] = {}, second[kFloats] = {};

    template <class E, int N>
    void add(const Vec<E, N>& u, const Vec<E, N>& uv) {
        accumulate<N>(first, u);
        accumulate<N>(second, uv);
    }
    double of_first() const { return total(first); }
    double of_second() const { return total(second); }
    static double total(const double* lanes) {
        double sum = 0;
        for (int i = 0; i < kFloats; ++i) sum += lanes[i];
        return sum;
    }
};

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
#pragma GCC unroll 4
    for (int k = 0; k < chains - 1; ++k) {
        if (i + N > n) break;
        next(i);
        sums.add(k, term(Width<N>{}, i));
        i += N;
    }
    if (i == n) return;
    next(i);
    if (n >= N) {  // the last N values again, of which those already summed count as zero
        Term<E, N> t = term(Width<N>{}, n - N);
        t.u = without_first<E, N>(t.u, N - (n - i));
        return sums.add(chains - 1, t);
    }
    Term<E, N> t{};
    for (int lane = 0; i < n; ++i, ++lane) {
        const Term<E, 1> one = term(Width<1>{}, i);
        t.u[lane] = one.u[0];
        t.v[lane] = one.v[0];
    }
    sums.add(chains - 1, t);
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
            for (int64_t i = 0; i < p.s; i += kRun) {
                Partial<E, N> partial;
                for (int64_t m = n; m < n + images && m < p.n; ++m) {
                    const int64_t at = (m * p.c + c) * p.s + i;
                    const int64_t later = at + (m + images < p.n ? images * p.c * p.s : 0);
                    sum_run<E, N>(
                        p.s - i < kRun ? p.s - i : kRun, partial,
                        [&](auto w, int64_t j) { return term(w, c, at + j); }, [&](int64_t j) { next(later + j); });
                }
                partial.flush(sums[c - c0]);
            }
}

// sum(E{}, c0, c1, sums) adds in E: float, and once more in double the maps for which that is not enough.
template <class P, class SumIn>
void sum_well(const P& p, int64_t c0, int64_t c1, Sums* sums, const SumIn& sum) {
    sum(float{}, c0, c1, sums);
    for (int64_t c = c0; c < c1; ++c) {
        Sums& s = sums[c - c0];
        if (good(p, s.of_first(), s.of_second())) continue;
        s = Sums{};
        sum(double{}, c, c + 1, &s);
    }
}

template <class T, Activation A, bool PastCache>
void forward_maps(const Forward& f) {
    const T* x = static_cast<const T*>(f.x);
    T* z = static_cast<T*>(f.z);
    each_group(f, sizeof(T), [&](int64_t c0, int64_t c1, int64_t to_next) {
        float shift[kMaxGroup];
        Affine k[kMaxGroup];
        for (int64_t c = c0; c < c1; ++c) shift[c - c0] = typical_value(f, x, c);
        Sums sums[kMaxGroup];
        sum_well(f, c0, c1, sums, [&](auto e, int64_t from, int64_t to, Sums* into) {
            using E = decltype(e);
            constexpr int N = kFloats * sizeof(float) / sizeof(E);
            sum_maps<E, N>(
                f, from, to, into,
                [&](auto w, int64_t c, int64_t at) {
                    return deviation<E, w.n>(x + at, Vec<E, w.n>{} + E(shift[c - c0]));
                },
                [&](int64_t at) { fetch<N>(x + at); });
        });
        for (int64_t c = c0; c < c1; ++c) {
            const Sums& s = sums[c - c0];
            k[c - c0] = finish(f, c, shift[c - c0], s.of_first(), s.of_second());
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
        for (int64_t c = c0; c < c1; ++c) k[c - c0] = affine(b, c, b.mean[c], b.rstd[c]);
        sum_well(b, c0, c1, sums, [&](auto e, int64_t from, int64_t to, Sums* into) {
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
        });
        for (int64_t c = c0; c < c1; ++c) {
            const Sums& s = sums[c - c0];
            slopes[c - c0] = finish(b, c, k[c - c0], s.of_first(), s.of_second());
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
            const T* of_x = x + map * f.s;
            const auto of_map = spread<kFloats>(k[map % f.c]);
            // In order: fetching ahead would cost time. By value: what a store may change is read again after it.
            map_run<PastCache>(z + map * f.s, f.s, [=, slope = f.slope](auto w, int64_t i) {
                return normalized<A, w.n>(of_x + i, of_map, slope);
            });
        }
        end_of_stream();
    });
    std::free(k);
    return true;
}

}  // namespace
