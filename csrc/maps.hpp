// The loops for (N, C, S), where the S values of a map are contiguous. A thread makes all passes over one group of maps
// while the group is in its cache.
#pragma once

#include <cstdlib>

#include "math.hpp"
#include "threads.hpp"

namespace {

constexpr int64_t kGroupBytes = 3 << 17;  // of input in a group of maps: two groups and an output fit in 1 MiB
constexpr int64_t kMaxGroup = 64;         // maps in a group
constexpr int64_t kRun = 1024;            // values summed in float registers, at most

// The sums of one channel, lane by lane.
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

// Sums in registers, which short runs share.
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

// Adds the terms of a run of n values. term(Width, i) computes them, next(i) prefetches later input.
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
    if (n >= N) {  // read the last N values, and zero those that are summed already
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

// Calls step(i, whole) for a run of n values in vectors, of which the last may overlap the one before it: then it is
// not `whole`, nor aligned. n must be at least kFloats.
template <class Step>
inline void map_run(int64_t n, const Step& step) {
    int64_t i = 0;
    for (; i + kFloats <= n; i += kFloats) step(i, true);
    if (i < n) step(n - kFloats, false);
}

template <int N = kFloats>
inline Coefficients<N> broadcast(const Affine& k) {
    return {splat<N>(k.mean), splat<N>(k.a), splat<N>(k.b)};
}

// Calls body(c0, c1, to_next) for groups of neighboring maps that fit in the cache. `to_next` is the offset to the
// thread's next group, which is prefetched while this one is written, or 0 after the last.
template <class Body>
void each_group(const Problem& p, int64_t bytes, const Body& body) {
    const int count = threads(p);
    const int64_t map_bytes = p.n * p.s * bytes;
    const int64_t fit = map_bytes * kMaxGroup < kGroupBytes ? kMaxGroup : kGroupBytes / map_bytes;
    int64_t groups = ceil_div(ceil_div(p.c, fit < 1 ? 1 : fit), count) * count;  // equal shares for the threads
    groups = groups < p.c ? groups : p.c;
    parallel(count, [&](int thread, int of) {
        const int64_t begin = groups * thread / of, end = groups * (thread + 1) / of;
        for (int64_t g = begin; g < end; ++g) {
            const int64_t c0 = g * p.c / groups, c1 = (g + 1) * p.c / groups;
            body(c0, c1, g + 1 < end ? (c1 - c0) * p.s : 0);
        }
        fence_streaming_stores();
    });
}

// Visits the maps [c0, c1) to write them, those of the last image first, because they are still in the nearest cache.
// step_of(c) returns the step of a channel. step(at, later, whole) writes the values at `at`. `later` is the offset to
// what is written after this map: the same map of the next image, or a map of the next group after the last image.
template <class StepOf>
void each_map(const Problem& p, int64_t c0, int64_t c1, const StepOf& step_of) {
    for (int64_t n = p.n - 1; n >= 0; --n) {
        const int64_t later = (n ? -p.c : (p.n - 1) * p.c + c1 - c0) * p.s;
        for (int64_t c = c0; c < c1; ++c) {
            const auto step = step_of(c);
            const int64_t map = (n * p.c + c) * p.s;
            map_run(p.s, [&](int64_t i, bool whole) { step(map + i, later, whole); });
        }
    }
}

// Sums the maps [c0, c1) image by image, in the order of memory. Short maps of a few images share registers.
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
                        p.s - i < kRun ? p.s - i : kRun, partial, [&](auto w, int64_t j) { return term(w, c, at + j); },
                        [&](int64_t j) { next(later + j); });
                }
                partial.flush(sums[c - c0]);
            }
}

// Calls sum(E{}, c0, c1, sums) in float, then in double for each channel where float was not accurate enough.
template <class P, class SumIn>
void sum_accurately(const P& p, int64_t c0, int64_t c1, Sums* sums, const SumIn& sum) {
    sum(float{}, c0, c1, sums);
    for (int64_t c = c0; c < c1; ++c) {
        Sums& s = sums[c - c0];
        if (float_sums_suffice(p, s.of_first(), s.of_second())) continue;
        s = Sums{};
        sum(double{}, c, c + 1, &s);
    }
}

// The statistics of the maps [c0, c1), and the coefficients that they give.
template <class T>
void sum_deviations(const Forward& f, int64_t c0, int64_t c1, const T* x, Affine* k) {
    float shift[kMaxGroup];
    for (int64_t c = c0; c < c1; ++c) shift[c - c0] = typical_value(f, x, c);
    Sums sums[kMaxGroup];
    sum_accurately(f, c0, c1, sums, [&](auto e, int64_t from, int64_t to, Sums* into) {
        using E = decltype(e);
        constexpr int N = kFloats * sizeof(float) / sizeof(E);
        sum_maps<E, N>(
            f, from, to, into,
            [&](auto w, int64_t c, int64_t at) { return deviation<E, w.n>(x + at, Vec<E, w.n>{} + E(shift[c - c0])); },
            [&](int64_t at) { prefetch<N>(x + at); });
    });
    for (int64_t c = c0; c < c1; ++c) {
        const Sums& s = sums[c - c0];
        k[c - c0] = finish(f, c, shift[c - c0], s.of_first(), s.of_second());
    }
}

// Steps capture by value, because a store makes the compiler reload what it may change. They capture scalars, because a
// captured struct stays in memory.
template <class T, Activation A, class Streaming, class Adds>
void forward_maps(const Forward& f, Streaming streaming, Adds adds) {
    const T *x = static_cast<const T*>(f.x), *residual = static_cast<const T*>(f.residual);
    T* z = static_cast<T*>(f.z);
    each_group(f, sizeof(T), [&](int64_t c0, int64_t c1, int64_t to_next) {
        Affine k[kMaxGroup];
        sum_deviations(f, c0, c1, x, k);
        if (!z) return;
        each_map(f, c0, c1, [&](int64_t c) {
            return [=, k = broadcast(k[c - c0]), slope = f.slope](int64_t at, int64_t later, bool whole) {
                const Input<T, Adds> from{x, residual, nullptr, adds};
                prefetch<kFloats>(x + at + to_next);
                if (adds) prefetch<kFloats>(residual + at + later);
                if (!streaming) prefetch_for_write<kFloats>(z + at + later);
                store<kFloats>(streaming && whole, z + at, normalized<A, kFloats>(from, at, k, slope));
            };
        });
    });
}

template <class T, Activation A, class Streaming, class Adds>
void backward_maps(const Backward& b, Streaming streaming, Adds adds) {
    const T *x = static_cast<const T*>(b.x), *residual = static_cast<const T*>(b.residual);
    const T* dz = static_cast<const T*>(b.dz);
    T *dx = static_cast<T*>(b.dx), *dresidual = static_cast<T*>(b.dresidual);
    const auto fetch = [=](auto w, int64_t at) __attribute__((always_inline)) {
        prefetch<w.n>(x + at);
        prefetch<w.n>(dz + at);
        if (adds) prefetch<w.n>(residual + at);
    };
    each_group(b, (adds ? 3 : 2) * sizeof(T), [&](int64_t c0, int64_t c1, int64_t to_next) {
        Sums sums[kMaxGroup];
        Affine k[kMaxGroup];
        for (int64_t c = c0; c < c1; ++c) k[c - c0] = affine(b, c, b.mean[c], b.rstd[c]);
        const auto sum = [&](auto e, int64_t first, int64_t last, Sums* into) {
            using E = decltype(e);
            constexpr int N = kFloats * sizeof(float) / sizeof(E);
            sum_maps<E, N>(
                b, first, last, into,
                [&](auto w, int64_t c, int64_t at) {
                    const Input<T, Adds> from{x, residual, dz, adds};
                    return gradient<E, A, w.n>(from, at, broadcast<w.n>(k[c - c0]), b.activation, b.slope);
                },
                [&](int64_t at) { fetch(Width<N>{}, at); });
        };
        if (!b.total) sum_accurately(b, c0, c1, sums, sum);
        Slopes slopes[kMaxGroup];
        for (int64_t c = c0; c < c1; ++c) {
            const Sums& s = sums[c - c0];
            slopes[c - c0] = finish(b, c, k[c - c0], s.of_first(), s.of_second());
        }
        if (!dx) return;
        each_map(b, c0, c1, [&](int64_t c) {
            const Slopes& m = slopes[c - c0];
            return [=, k = broadcast(k[c - c0]), c1 = splat<kFloats>(m.c1), c0 = splat<kFloats>(m.c0), slope = b.slope](
                       int64_t at, int64_t later, bool whole) {
                const Input<T, Adds> from{x, residual, dz, adds};
                fetch(Width<kFloats>{}, at + to_next);
                const Gradients<kFloats> d = gradients<A, kFloats>(from, at, k, c1, c0, slope);
                if (!streaming) prefetch_for_write<kFloats>(dx + at + later);
                store<kFloats>(streaming && whole, dx + at, d.dx);
                if (!(adds && dresidual)) return;
                if (!streaming) prefetch_for_write<kFloats>(dresidual + at + later);
                store<kFloats>(streaming && whole, dresidual + at, d.dy);
            };
        });
    });
}

template <class T, Activation A, class Streaming, class Adds>
void inference_maps(const Inference& f, const Affine* k, Streaming streaming, Adds adds) {
    const T *x = static_cast<const T*>(f.x), *residual = static_cast<const T*>(f.residual);
    T* z = static_cast<T*>(f.z);
    const int64_t maps = f.n * f.c;
    parallel(threads(f), [&](int thread, int count) {
        for (int64_t map = maps * thread / count, end = maps * (thread + 1) / count; map < end; ++map)
            // In memory order the hardware prefetches, and software prefetching costs time.
            map_run(f.s, [=, k = broadcast(k[map % f.c]), slope = f.slope, first = map * f.s](int64_t i, bool whole) {
                const Input<T, Adds> from{x, residual, nullptr, adds};
                store<kFloats>(streaming && whole, z + first + i, normalized<A, kFloats>(from, first + i, k, slope));
            });
        fence_streaming_stores();
    });
}

template <class T, Activation A>
void forward_maps(const Forward& f, bool streaming) {
    with_flags<A>(f, streaming, [&](auto streams, auto adds) { forward_maps<T, A>(f, streams, adds); });
}

template <class T, Activation A>
void backward_maps(const Backward& b, bool streaming) {
    with_residual<A>(
        b, [&](auto adds) { with_flag<A>(streaming, [&](auto streams) { backward_maps<T, A>(b, streams, adds); }); });
}

template <class T, Activation A>
bool inference_maps(const Inference& f, bool streaming) {
    Affine* k = static_cast<Affine*>(std::malloc(f.c * sizeof(Affine)));
    if (!k) return false;
    for (int64_t c = 0; c < f.c; ++c) k[c] = affine(f, c, f.mean[c], f.rstd[c]);
    with_flags<A>(f, streaming, [&](auto streams, auto adds) { inference_maps<T, A>(f, k, streams, adds); });
    std::free(k);
    return true;
}

}  // namespace
