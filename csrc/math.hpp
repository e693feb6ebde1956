// The math of both layouts: sizes, one value (y = (x - mean) * a + b + residual, z = g(y)), and the statistics of one
// channel.
#pragma once

#include <cmath>
#include <type_traits>

#include "activations.hpp"
#include "batch_norm.hpp"
#include "simd.hpp"

namespace {

using namespace batchnorm;

constexpr int64_t kSerial = 32768;  // with fewer values, starting the pool takes longer than it saves

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t values(const Problem& p) { return p.n * p.c * p.s; }
int threads(const Problem& p) { return values(p) < kSerial ? 1 : p.threads; }

struct Affine {
    float mean, a, b;
};

// b absorbs the rounding error of the float32 mean. At mean 1e4 and std 1e-2 it is a twentieth of the std.
Affine affine(const Problem& p, int64_t c, double mean, double rstd) {
    const double a = (p.gamma ? p.gamma[c] : 1.0) * rstd;
    const float near = static_cast<float>(mean);
    const double rest = std::isfinite(mean) ? mean - near : 0.0;
    return {near, static_cast<float>(a), static_cast<float>((p.beta ? p.beta[c] : 0.0) - rest * a)};
}

template <int N>
struct Coefficients {
    Vec<float, N> mean, a, b;
};

// What a step reads. `adds` tells whether there is a residual, as a bool or as std::true_type or std::false_type: for
// cheap activations a branch per vector would cost up to a tenth of the time.
template <class T, class Adds = bool>
struct Input {
    const T *x, *residual, *dz;
    Adds adds;
};

constexpr bool is_cheap(Activation a) { return a <= Activation::hardswish; }

// Calls body with a flag that the compiler knows if the activation is cheap.
template <Activation A, class Body>
void with_flag(bool flag, const Body& body) {
    if constexpr (!is_cheap(A)) body(flag);
    else if (flag) body(std::true_type{});
    else body(std::false_type{});
}

// Calls body(streaming, adds) with such flags.
template <Activation A, class Body>
void with_flags(const Problem& p, bool streaming, const Body& body) {
    with_flag<A>(p.residual, [&](auto adds) { with_flag<A>(streaming, [&](auto streams) { body(streams, adds); }); });
}

// Calls body(adds) for a backward. Without an activation it never reads the residual, because the slope is 1.
template <Activation A, class Body>
void with_residual(const Backward& b, const Body& body) {
    if constexpr (A == Activation::none) body(std::false_type{});
    else with_flag<A>(b.residual, body);
}

// y = BN(x) + residual, given x - mean.
template <int N, class T, class Adds>
inline Vec<float, N> preactivation(Vec<float, N> d, const Input<T, Adds>& from, int64_t at, const Coefficients<N>& k) {
    const Vec<float, N> y = madd<N>(d, k.a, k.b);
    return from.adds ? y + load<N>(from.residual + at) : y;
}

template <Activation A, int N, class T, class Adds>
inline Vec<float, N> normalized(const Input<T, Adds>& from, int64_t at, const Coefficients<N>& k, float slope) {
    return activate<A, N>(preactivation<N>(load<N>(from.x + at) - k.mean, from, at, k), slope);
}

// Each channel has two sums, of u and of u * v. Short runs are summed in float, and the runs in double. If that is not
// accurate enough (see `float_sums_suffice`), all is summed again in double. E is float or double.
template <class E, int N>
struct Term {
    Vec<E, N> u, v;
};

// Forward: deviations from a value near the channel's mean, `shift`, so that little cancels in the variance.
template <class E, int N, class T>
inline Term<E, N> deviation(const T* x, Vec<E, N> shift) {
    const Vec<E, N> d = as<E, N>(load<N>(x)) - shift;
    return {d, d};
}

// Backward: dy, and dy * (x - mean). In double, which is rare, one function serves all activations.
template <class E, Activation A, int N, class T, class Adds>
inline Term<E, N> gradient(const Input<T, Adds>& from, int64_t at, const Coefficients<N>& k, Activation kind,
                           float slope) {
    const Vec<float, N> d = load<N>(from.x + at) - k.mean, y = preactivation<N>(d, from, at, k),
                        dz = load<N>(from.dz + at);
    if constexpr (std::is_same_v<E, float>) return {gate<A, N>(dz, y, slope), d};
    else return {as<E, N>(gate<N>(kind, dz, y, slope)), as<E, N>(d)};
}

// dx, and dy, which is the residual's gradient.
template <int N>
struct Gradients {
    Vec<float, N> dx, dy;
};

// dx = a * (dy - mean(dy) - x_hat * mean(dy * x_hat)) = a * dy + c1 * (x - mean) + c0.
template <Activation A, int N, class T, class Adds>
inline Gradients<N> gradients(const Input<T, Adds>& from, int64_t at, const Coefficients<N>& k, Vec<float, N> c1,
                              Vec<float, N> c0, float slope) {
    const Vec<float, N> d = load<N>(from.x + at) - k.mean, y = preactivation<N>(d, from, at, k),
                        dy = gate<A, N>(load<N>(from.dz + at), y, slope);
    return {madd<N>(k.a, dy, madd<N>(c1, d, c0)), dy};
}

// Returns a value near most values of the channel: the median of three, from inside the maps of three images.
template <class T>
float typical_value(const Problem& p, const T* x, int64_t c) {
    if (!values(p)) return 0;
    const auto at = [&](int64_t n, int64_t s) {
        return load<1>(x + (p.channels_last ? (n * p.s + s) * p.c + c : (n * p.c + c) * p.s + s))[0];
    };
    const float first = at(0, p.s / 2), second = at(p.n / 2, p.s / 3), third = at(p.n - 1, p.s - 1 - p.s / 3);
    const float low = first < second ? first : second, high = first < second ? second : first;
    const float median = third < low ? low : third > high ? high : third;
    return std::isfinite(median) ? median : 0.0f;  // with an infinite shift, an infinite mean would become NaN
}

// Returns true if float was accurate enough for the sums: nothing overflowed or vanished, and the shift was within four
// standard deviations of the mean. Then cancellation costs the variance less than five bits.
bool float_sums_suffice(const Forward& f, double first, double second) {
    const double count = static_cast<double>(f.n * f.s), mean = first / count, var = second / count - mean * mean;
    const bool resolved = mean * mean <= 16 * var + 1e-30 && (var > 1e-30 || f.eps > 1e-24);
    return std::isfinite(first) && std::isfinite(second) && resolved;
}

bool float_sums_suffice(const Backward&, double first, double second) {
    return std::isfinite(first) && std::isfinite(second);
}

// Computes the channel's statistics from its two sums, and stores them.
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

// dx = a * dy + c1 * (x - mean) + c0.
struct Slopes {
    float c1, c0;
};

// Computes dgamma and dbeta from the two sums, or takes those of the whole batch, and stores them. Returns the
// coefficients of dx.
Slopes finish(const Backward& b, int64_t c, const Affine& k, double first, double second) {
    const double count = static_cast<double>(b.total ? b.count : b.n * b.s);
    const double rest = std::isfinite(b.mean[c]) ? b.mean[c] - k.mean : 0.0;
    if (b.total) first = b.total[c];
    const double dgamma = b.total ? b.total[b.c + c] : b.rstd[c] * (second - rest * first);
    if (b.dgamma) b.dgamma[c] = static_cast<float>(dgamma);
    if (b.dbeta) b.dbeta[c] = static_cast<float>(first);
    const double a = (b.gamma ? b.gamma[c] : 1.0) * b.rstd[c];
    const double c1 = -a * b.rstd[c] * dgamma / count;
    return {static_cast<float>(c1), static_cast<float>(-a * first / count - c1 * rest)};
}

}  // namespace
