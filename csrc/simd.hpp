// Vector types of GCC and Clang, as wide as the target's registers. One source serves SSE, AVX2, AVX-512 and NEON.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// Each target is compiled as a translation unit of its own, and everything here is local to it. The
// linker would keep one copy of a shared function, perhaps that of the widest target, which fails on a narrower
// machine.
namespace {

#if defined(__AVX512F__)
constexpr int kDoubles = 8;  // in one register
#elif defined(__AVX2__)
constexpr int kDoubles = 4;
#else
constexpr int kDoubles = 2;
#endif
constexpr int kFloats = 2 * kDoubles;

struct bfloat16 {
    uint16_t bits;
};

template <class E, int N>
struct VecOf {
    typedef E type __attribute__((vector_size(N * sizeof(E))));
};
template <class E, int N>
using Vec = typename VecOf<E, N>::type;

template <int N>
struct Width {
    static constexpr int n = N;
};

template <int N>
inline Vec<float, N> load(const float* p) {
    Vec<float, N> v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

template <int N>
inline Vec<double, N> load(const double* p) {
    Vec<double, N> v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

template <int N>
inline Vec<float, N> load(const bfloat16* p) {
    Vec<uint16_t, N> half;
    __builtin_memcpy(&half, p, sizeof half);
#if defined(__AVX512BW__)
    if constexpr (N == 16) {  // one permutation moves each value to the upper half of its lane
        const auto lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        const auto all = _mm512_castsi256_si512((__m256i)half);
        return (Vec<float, N>)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, _mm512_slli_epi32(lanes, 16), all);
    }
#endif
    return (Vec<float, N>)(__builtin_convertvector(half, Vec<uint32_t, N>) << 16);
}

// Rounds to the upper 16 bits, to nearest even. NaN stays NaN, whatever its payload. AVX512-BF16 makes denormals 0.
template <int N>
inline Vec<uint16_t, N> narrow(Vec<float, N> v) {
#if defined(__AVX512BF16__)
    if constexpr (N == 16) return (Vec<uint16_t, N>)_mm512_cvtneps_pbh(v);
#endif
    auto bits = (Vec<uint32_t, N>)v;
    auto rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    auto nan = Vec<uint32_t, N>{} + 0x7fc0;
    auto half = (v == v) ? rounded : nan;
#if defined(__AVX512F__)
    if constexpr (N == 16) return (Vec<uint16_t, N>)_mm512_cvtepi32_epi16((__m512i)half);
#endif
    return __builtin_convertvector(half, Vec<uint16_t, N>);
}

template <class V>
inline void write(void* p, V v) {
    __builtin_memcpy(p, &v, sizeof v);
}

// Stores without filling the caches, for outputs that no cache can hold. `p` must be aligned to the vector.
template <class V>
inline void write_streaming(void* p, V v) {
#if defined(__AVX512F__)
    if constexpr (sizeof v == 64) return _mm512_stream_si512((__m512i*)p, (__m512i)v);
#endif
#if defined(__AVX2__)
    if constexpr (sizeof v == 32) return _mm256_stream_si256((__m256i*)p, (__m256i)v);
#endif
#if defined(__x86_64__)
    if constexpr (sizeof v == 16) return _mm_stream_si128((__m128i*)p, (__m128i)v);
#endif
    write(p, v);
}

inline void fence_streaming_stores() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

template <int N>
inline void store(bool streaming, float* p, Vec<float, N> v) {
    if (N > 1 && streaming) write_streaming(p, v);
    else write(p, v);
}

template <int N>
inline void store(bool streaming, bfloat16* p, Vec<float, N> v) {
    if (N > 1 && streaming) write_streaming(p, narrow<N>(v));
    else write(p, narrow<N>(v));
}

// a * b + c, rounded once if the target has an instruction for that. The bits are the same at every width, so that a
// tail equals a vector.
template <int N>
inline Vec<float, N> madd(Vec<float, N> a, Vec<float, N> b, Vec<float, N> c) {
#if defined(__FMA__) || defined(__aarch64__)
    if constexpr (N == 1) return Vec<float, 1>{__builtin_fmaf(a[0], b[0], c[0])};
#endif
#if defined(__AVX512F__)
    if constexpr (N == 16) return _mm512_fmadd_ps(a, b, c);
#endif
#if defined(__FMA__)
    if constexpr (N == 8) return _mm256_fmadd_ps(a, b, c);
    if constexpr (N == 4) return _mm_fmadd_ps(a, b, c);
#endif
#if defined(__aarch64__)
    if constexpr (N == 4) return vfmaq_f32(c, a, b);
    if constexpr (N == 2) return vfma_f32(c, a, b);
#endif
    return a * b + c;
}

template <int N>
inline Vec<double, N> madd(Vec<double, N> a, Vec<double, N> b, Vec<double, N> c) {
#if defined(__AVX512F__)
    if constexpr (N == 8) return _mm512_fmadd_pd(a, b, c);
#endif
#if defined(__FMA__)
    if constexpr (N == 4) return _mm256_fmadd_pd(a, b, c);
#endif
#if defined(__aarch64__)
    if constexpr (N == 2) return vfmaq_f64(c, a, b);
#endif
    return a * b + c;
}

template <class E, int N>
inline Vec<E, N> as(Vec<float, N> v) {
    if constexpr (sizeof(E) == sizeof(float)) return v;
    else {
#if defined(__AVX512F__)
        if constexpr (N == 8) return _mm512_cvtps_pd((__m256)v);
#endif
#if defined(__AVX2__)
        if constexpr (N == 4) return _mm256_cvtps_pd((__m128)v);
#endif
        return __builtin_convertvector(v, Vec<double, N>);
    }
}

template <int N>
inline void accumulate(double* sums, Vec<double, N> v) {
    Vec<double, N> sum;
    __builtin_memcpy(&sum, sums, sizeof sum);
    sum += v;
    __builtin_memcpy(sums, &sum, sizeof sum);
}

// Adds each lane to its own double.
template <int N>
inline void accumulate(double* sums, Vec<float, N> v) {
    if constexpr (N == 1) sums[0] += v[0];
    else {
        Vec<float, N / 2> half[2];
        __builtin_memcpy(half, &v, sizeof v);
        accumulate<N / 2>(sums, as<double, N / 2>(half[0]));
        accumulate<N / 2>(sums + N / 2, as<double, N / 2>(half[1]));
    }
}

// Returns `v` with its first `count` lanes set to zero.
template <class E, int N>
inline Vec<E, N> without_first(Vec<E, N> v, int64_t count) {
    using Index = Vec<std::conditional_t<sizeof(E) == 4, int32_t, int64_t>, N>;
    Index lane;
    for (int i = 0; i < N; ++i) lane[i] = i;
    return lane >= Index{} + static_cast<int>(count) ? v : Vec<E, N>{};
}

// The larger and the smaller of a bound and y, which is the second operand: so NaN and -0 stay.
template <int N>
inline Vec<float, N> at_least(Vec<float, N> bound, Vec<float, N> y) {
#if defined(__AVX512F__)
    if constexpr (N == 16) return _mm512_max_ps(bound, y);
#endif
#if defined(__AVX2__)
    if constexpr (N == 8) return _mm256_max_ps(bound, y);
#endif
#if defined(__x86_64__)
    if constexpr (N == 4) return _mm_max_ps(bound, y);
#endif
    return y < bound ? bound : y;
}

template <int N>
inline Vec<float, N> at_most(Vec<float, N> bound, Vec<float, N> y) {
#if defined(__AVX512F__)
    if constexpr (N == 16) return _mm512_min_ps(bound, y);
#endif
#if defined(__AVX2__)
    if constexpr (N == 8) return _mm256_min_ps(bound, y);
#endif
#if defined(__x86_64__)
    if constexpr (N == 4) return _mm_min_ps(bound, y);
#endif
    return y > bound ? bound : y;
}

template <int N>
inline Vec<float, N> splat(float value) {
    return value - Vec<float, N>{};  // x - 0 is x, so this compiles to a broadcast; x + 0 would turn -0 into 0
}

// Prefetches N values into the second-level cache.
template <int N, class T>
inline void prefetch(const T* p) {
    constexpr int line = 64 / sizeof(T);
    for (int i = 0; i < N; i += line) __builtin_prefetch(p + i, 0, 2);
}

// Prefetches N values that will be written. Targets without an instruction for that prefetch them for reading.
template <int N, class T>
inline void prefetch_for_write(T* p) {
    constexpr int line = 64 / sizeof(T);
    for (int i = 0; i < N; i += line) __builtin_prefetch(p + i, 1, 2);
}

// Calls step(Width<N>, i, seen) over [0, n) in whole vectors. The last vector may overlap the one before it, in its
// first `seen` lanes. If n is less than a vector, the steps are Width<1>. The function is flattened, because a call
// inside a step would spill every register.
template <int N, class Step>
__attribute__((flatten)) inline void sweep(int64_t n, const Step& step) {
    int64_t i = 0;
    for (; i + N <= n; i += N) step(Width<N>{}, i, 0);
    if (i < n && n >= N) return step(Width<N>{}, n - N, i - (n - N));
    for (; i < n; ++i) step(Width<1>{}, i, 0);
}

}  // namespace
