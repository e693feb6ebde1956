// The activations g and their slopes, on vectors. A value has the same bits at every width. So the forward and the
// backward round alike, and a tail equals a vector. NaN and infinities give what torch's operations give.
#pragma once

#include "batch_norm.hpp"
#include "simd.hpp"

namespace {

using batchnorm::Activation;

template <int N>
inline Vec<float, N> clamp(Vec<float, N> y, float low, float high) {  // keeps NaN
    return at_most<N>(splat<N>(high), at_least<N>(splat<N>(low), y));
}

// The polynomial with these coefficients, the highest power first.
template <int N, int Count>
inline Vec<float, N> polynomial(Vec<float, N> t, const float (&coefficients)[Count]) {
    auto sum = splat<N>(coefficients[0]);
#pragma GCC unroll 16
    for (int i = 1; i < Count; ++i) sum = madd<N>(sum, t, splat<N>(coefficients[i]));
    return sum;
}

// 2^Scale exp(y), for results in the normal range. `rest` is small, for a y that is known more precisely than float32
// holds. y = n ln 2 + r with |r| <= ln 2 / 2, and exp(y) = 2^n exp(r).
template <int Scale, int N, class... Rest>
inline Vec<float, N> exponential(Vec<float, N> y, Rest... rest) {
    constexpr float log2_e = 0x1.715476p+0f;
    constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;  // n * ln2_high is exact
    constexpr float bias = 0x1.8p23f + 127 + Scale;  // a float of this size has no fraction: adding it rounds
    constexpr float p[] = {0x1.69c16cp-10f, 0x1.1275ap-7f, 0x1.555a8ap-5f, 0x1.55543ap-3f, 0x1.fffff8p-2f};
    const auto shifted = madd<N>(y, splat<N>(log2_e), splat<N>(bias)), n = shifted - bias;
    const auto r = (madd<N>(n, splat<N>(-ln2_low), madd<N>(n, splat<N>(-ln2_high), y)) + ... + rest);
    const auto power = madd<N>(polynomial<N>(r, p) * r, r, r) + 1.0f;
    return power * (Vec<float, N>)((Vec<uint32_t, N>)shifted << 23);  // the low bits of `shifted` are n + Scale + 127
}

// 1 + exp(-y). Half of exp(89) is finite, and twice that is infinite: there the sigmoid is 0.
template <int N>
inline Vec<float, N> one_and_exponential(Vec<float, N> y) {
    return madd<N>(exponential<-1, N>(clamp<N>(-y, -80.0f, 89.0f)), splat<N>(2), splat<N>(1));
}

template <int N>
inline Vec<float, N> sigmoid(Vec<float, N> y) {
    return 1.0f / one_and_exponential<N>(y);
}

// The distribution function of the standard normal, (1 + erf(y / sqrt 2)) / 2, and its density.
template <int N>
struct Normal {
    Vec<float, N> below, density;

    // The smaller tail is exp(-y^2 / 2) f(|y|). The last factor is smooth. With t = 1 / (1 + 0.6 |y|) and v = 1 - t it
    // is t (1/2 + v p(v)).
    explicit Normal(Vec<float, N> y) {
        constexpr float p[] = {0x1.ccecb4p-4f,  -0x1.9040ap-2f, 0x1.0d25ccp-1f,  -0x1.9dbe7p-2f,  0x1.afe51ep-3f,
                               -0x1.791816p-6f, 0x1.2a3e68p-5f, -0x1.ca3bb6p-6f, -0x1.152342p-3f, -0x1.51b95cp-3f};
        constexpr float inverse_root = 0x1.988454p-2f;                             // 1 / sqrt(2 pi)
        const Vec<float, N> zero{}, size = clamp<N>(y < zero ? -y : y, 0, 14.5f);  // where both are 0
        // y^2 / 2 in two parts: the rounding of the square would be that of the exponential, times its size.
        const auto head = (Vec<float, N>)((Vec<uint32_t, N>)size & 0xfffff000u);
        const auto rest = (size - head) * (size + head) * -0.5f;
        const auto power = exponential<64, N>(head * head * -0.5f, rest) * 0x1p-64f;  // perhaps below the normal range
        const auto t = 1.0f / madd<N>(size, splat<N>(0.6f), splat<N>(1)), tv = t * t * size * 0.6f;
        const auto tail = power * madd<N>(tv, polynomial<N>(size * 0.6f * t, p), t * 0.5f);
        below = y > zero ? 1.0f - tail : tail;
        density = power * inverse_root;
    }
};

// The argument of the sigmoid that GELU's tanh form comes to: y (1 + tanh(q)) / 2 = y sigmoid(2 q).
constexpr float kLinear = 0x1.988454p+0f, kCubic = 0x1.2444f2p-4f;  // sqrt(8 / pi), and that times 0.044715

template <int N>
inline Vec<float, N> twice_q(Vec<float, N> y) {
    return y * madd<N>(y * y, splat<N>(kCubic), splat<N>(kLinear));
}

template <Activation A, int N>
inline Vec<float, N> activate(Vec<float, N> y, float slope) {
    const Vec<float, N> zero{};
    if constexpr (A == Activation::relu) return at_least<N>(zero, y);
    if constexpr (A == Activation::leaky_relu) return y < zero ? y * slope : y;
    if constexpr (A == Activation::relu6) return clamp<N>(y, 0, 6);
    if constexpr (A == Activation::hardswish) return y * clamp<N>(y + 3.0f, 0, 6) * (1 / 6.0f);
    if constexpr (A == Activation::sigmoid) return sigmoid<N>(y);
    if constexpr (A == Activation::silu) return y / one_and_exponential<N>(y);
    if constexpr (A == Activation::gelu) return y * Normal<N>(y).below;
    if constexpr (A == Activation::gelu_tanh) return y * sigmoid<N>(twice_q<N>(y));
    return y;
}

// dy = g'(y) * dz. y is recomputed with the expression of the forward, so that both round alike.
template <Activation A, int N>
inline Vec<float, N> gate(Vec<float, N> dz, Vec<float, N> y, float slope) {
    const Vec<float, N> zero{};
    if constexpr (A == Activation::relu) return y <= zero ? zero : dz;
    if constexpr (A == Activation::leaky_relu) return y > zero ? dz : dz * slope;
    if constexpr (A == Activation::relu6) return y <= zero ? zero : y >= splat<N>(6) ? zero : dz;
    if constexpr (A == Activation::hardswish) {
        const auto inside = dz * madd<N>(y, splat<N>(1 / 3.0f), splat<N>(0.5f));
        return y <= splat<N>(-3) ? zero : y < splat<N>(3) ? inside : dz;
    }
    if constexpr (A == Activation::sigmoid) {
        const auto s = sigmoid<N>(y);
        return dz * s * (1.0f - s);
    }
    if constexpr (A == Activation::silu) {
        const auto s = sigmoid<N>(y);
        return dz * s * madd<N>(y, 1.0f - s, splat<N>(1));
    }
    if constexpr (A == Activation::gelu) {
        const Normal<N> at(y);
        return dz * madd<N>(y, at.density, at.below);
    }
    if constexpr (A == Activation::gelu_tanh) {
        const auto s = sigmoid<N>(twice_q<N>(y));
        const auto slope_of_q = madd<N>(y * y, splat<N>(3 * kCubic), splat<N>(kLinear));
        return dz * madd<N>(y * s * (1.0f - s), slope_of_q, s);
    }
    return dz;
}

// The same for an activation that is known at run time only.
template <int N>
__attribute__((noinline)) Vec<float, N> gate(Activation a, Vec<float, N> dz, Vec<float, N> y, float slope) {
    switch (a) {
        case Activation::none: return dz;
        case Activation::relu: return gate<Activation::relu, N>(dz, y, slope);
        case Activation::leaky_relu: return gate<Activation::leaky_relu, N>(dz, y, slope);
        case Activation::relu6: return gate<Activation::relu6, N>(dz, y, slope);
        case Activation::hardswish: return gate<Activation::hardswish, N>(dz, y, slope);
        case Activation::sigmoid: return gate<Activation::sigmoid, N>(dz, y, slope);
        case Activation::silu: return gate<Activation::silu, N>(dz, y, slope);
        case Activation::gelu: return gate<Activation::gelu, N>(dz, y, slope);
        case Activation::gelu_tanh: return gate<Activation::gelu_tanh, N>(dz, y, slope);
    }
    return dz;
}

}  // namespace
