// Runs every loop of csrc/maps.hpp and csrc/rows.hpp on blocks of exactly the size that it may touch, for a build with
// sanitizers. Compares the output with the paper's formulas.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "batch_norm.hpp"
#include "cache.hpp"
#include "threads.hpp"

using namespace batchnorm;

namespace batchnorm {
extern const Kernels kernels_checked;

// Replaces that of cache.cpp, so that small tensors use streaming stores too.
static int64_t cache = 0;
int64_t last_level_cache() { return cache; }
}  // namespace batchnorm

namespace {

int runs = 0;

// Allocates n values without padding, so that the sanitizer sees the first byte outside.
template <class T>
std::unique_ptr<T[]> block(int64_t n, T fill) {
    std::unique_ptr<T[]> p(new T[n]);
    for (int64_t i = 0; i < n; ++i) p[i] = fill;
    return p;
}

double wide(float v) { return v; }
double wide(uint16_t bits) {  // of bfloat16
    const uint32_t upper = static_cast<uint32_t>(bits) << 16;
    float v;
    std::memcpy(&v, &upper, sizeof v);
    return v;
}

double cdf(double y) { return std::erfc(-y / std::sqrt(2.0)) / 2; }
double sigmoid(double y) { return 1 / (1 + std::exp(-y)); }
double twice_q(double y) { return std::sqrt(8 / M_PI) * (y + 0.044715 * y * y * y); }

double activated(const Problem& p, double y) {
    switch (p.activation) {
        case Activation::none: return y;
        case Activation::relu: return std::max(y, 0.0);
        case Activation::leaky_relu: return y > 0 ? y : y * p.slope;
        case Activation::relu6: return std::min(std::max(y, 0.0), 6.0);
        case Activation::hardswish: return y * std::min(std::max(y + 3, 0.0), 6.0) / 6;
        case Activation::sigmoid: return sigmoid(y);
        case Activation::silu: return y * sigmoid(y);
        case Activation::gelu: return y * cdf(y);
        case Activation::gelu_tanh: return y * sigmoid(twice_q(y));
    }
    return NAN;
}

// The slope of a smooth activation by a difference.
double slope_at(const Problem& p, double y) {
    if (p.activation == Activation::relu || p.activation == Activation::leaky_relu)
        return y > 0 ? 1 : p.activation == Activation::relu ? 0 : p.slope;
    if (p.activation == Activation::relu6) return y > 0 && y < 6;
    if (p.activation == Activation::hardswish) return y <= -3 ? 0 : y < 3 ? y / 3 + 0.5 : 1;
    if (std::abs(y) > 1e6) return y > 0 || p.activation == Activation::none;
    const double h = 1e-5;
    return (activated(p, y + h) - activated(p, y - h)) / (2 * h);
}

template <class T>
bool near(T found, double want, double scale) {
    return std::abs(wide(found) - want) <= (sizeof(T) == 2 ? 0x1p-7 : 0x1p-16) * (std::abs(want) + scale);
}

// Compares one channel with the paper's formulas, in double, value by value. `out` is the output of the forward, or of
// inference with the given mean and rstd. dz and dx may be null.
template <class T>
bool channel_is_right(const Problem& p, int64_t c, double mean, double rstd, const T* x, const T* out, const T* dz,
                      const T* dx, const T* dresidual) {
    const double count = static_cast<double>(p.n * p.s), a = p.gamma[c] * rstd;
    const auto each = [&](const auto& body) {
        for (int64_t i = 0; i < p.n * p.s; ++i)
            body(p.channels_last ? i * p.c + c : (i / p.s * p.c + c) * p.s + i % p.s);
    };
    const T* residual = static_cast<const T*>(p.residual);
    const auto y = [&](int64_t at) {
        return (wide(x[at]) - mean) * a + p.beta[c] + (residual ? wide(residual[at]) : 0);
    };
    bool right = true;
    each([&](int64_t at) { right &= near(out[at], activated(p, y(at)), 1 + std::abs(p.beta[c])); });
    if (!dx) return right;
    if (dresidual) each([&](int64_t at) { right &= near(dresidual[at], wide(dz[at]) * slope_at(p, y(at)), 1); });
    double dbeta = 0, dgamma = 0, largest = 0;
    each([&](int64_t at) {
        const double dy = wide(dz[at]) * slope_at(p, y(at));
        dbeta += dy, dgamma += dy * (wide(x[at]) - mean) * rstd, largest = std::max(largest, std::abs(a * dy));
    });
    each([&](int64_t at) {
        const double x_hat = (wide(x[at]) - mean) * rstd, dy = wide(dz[at]) * slope_at(p, y(at));
        right &= near(dx[at], a * (dy - dbeta / count - x_hat * dgamma / count), 4 * largest);
    });
    return right;
}

// Computes the statistics of a channel with two plain sums.
template <class T>
void statistics(const Problem& p, int64_t c, const T* x, double& mean, double& rstd) {
    const auto at = [&](int64_t i) {
        return wide(x[p.channels_last ? i * p.c + c : (i / p.s * p.c + c) * p.s + i % p.s]);
    };
    const int64_t count = p.n * p.s;
    double m2 = 0;
    mean = 0;
    for (int64_t i = 0; i < count; ++i) mean += at(i);
    mean /= static_cast<double>(count);
    for (int64_t i = 0; i < count; ++i) m2 += (at(i) - mean) * (at(i) - mean);
    rstd = 1 / std::sqrt(m2 / static_cast<double>(count) + 1e-5);
}

template <class T>
bool run(const Problem& shape, T one, float scale) {
    const int64_t values = shape.n * shape.c * shape.s, c = shape.c;
    auto x = block<T>(values, one), dz = block<T>(values, one), z = block<T>(values, T{}), dx = block<T>(values, T{});
    for (int64_t i = 0; i < values; ++i) {  // no period of the squares divides a vector, so no two lanes are equal
        if (i * i % 11 < 5) x[i] = T{};
        if (i * i % 13 < 4) dz[i] = T{};
    }
    auto residual = block<T>(values, T{}), dresidual = block<T>(values, T{});
    for (int64_t i = 0; i < values; ++i) residual[i] = i * i % 7 < 3 ? one : T{};
    auto gamma = block<float>(c, 1.5f), beta = block<float>(c, -0.53f), mean = block<float>(c, 0),
         var = block<float>(c, 0);
    auto saved_mean = block<double>(c, 0), saved_rstd = block<double>(c, 0);
    for (int64_t i = 0; i < c; ++i) gamma[i] += 0.25f * (i % 7), beta[i] += 0.1f * (i % 5);
    Problem p = shape;
    p.gamma = gamma.get();
    p.beta = beta.get();
    const bool adds = shape.residual && p.activation != Activation::none;
    p.residual = shape.residual ? residual.get() : nullptr;
    bool right = kernels_checked.forward(
        Forward{p, x.get(), 1e-5, z.get(), mean.get(), var.get(), saved_mean.get(), saved_rstd.get()});
    for (int64_t i = 0; i < c; ++i) right &= values == 0 || (mean[i] >= 0 && mean[i] <= scale);
    auto dgamma = block<float>(c, 0), dbeta = block<float>(c, NAN);
    right &= kernels_checked.backward(Backward{p, x.get(), dz.get(), saved_mean.get(), saved_rstd.get(), dx.get(),
                                               adds ? dresidual.get() : nullptr, dgamma.get(), dbeta.get()});
    for (int64_t i = 0; i < c; ++i) right &= std::abs(dbeta[i]) <= 1.2f * scale * static_cast<float>(shape.n * shape.s);
    for (int64_t i = 0; i < c && values; ++i) {
        double own_mean, rstd;
        statistics(p, i, x.get(), own_mean, rstd);
        right &= channel_is_right(p, i, own_mean, rstd, x.get(), z.get(), dz.get(), dx.get(),
                                  adds ? dresidual.get() : nullptr);
    }
    const T* none = nullptr;
    // The statistics alone, and a backward by sums that are known, as they are for a part of a batch.
    auto again = block<double>(2 * c, 0), total = block<double>(2 * c, 0);
    right &= kernels_checked.forward(
        Forward{p, x.get(), 1e-5, nullptr, mean.get(), var.get(), again.get(), again.get() + c});
    for (int64_t i = 0; i < c && values; ++i)
        right &= again[i] == saved_mean[i] && again[c + i] == saved_rstd[i], total[i] = dbeta[i],
                                                                             total[c + i] = dgamma[i];
    for (int64_t i = 0; i < values; ++i) dx[i] = T{};
    right &= kernels_checked.backward(Backward{p, x.get(), dz.get(), saved_mean.get(), saved_rstd.get(), dx.get(),
                                               nullptr, nullptr, nullptr, total.get(), p.n * p.s});
    for (int64_t i = 0; i < c && values; ++i)
        right &= channel_is_right<T>(p, i, again[i], again[c + i], x.get(), z.get(), dz.get(), dx.get(), nullptr);
    auto rstd = block<double>(c, 0.5);
    right &= kernels_checked.inference(Inference{p, x.get(), saved_mean.get(), rstd.get(), z.get()});
    for (int64_t i = 0; i < c && values; ++i)
        right &= channel_is_right(p, i, saved_mean[i], 0.5, x.get(), z.get(), none, none, none);
    ++runs;
    return right;
}

constexpr int64_t kLarge = 6000;  // values; larger shapes take most of the time

// Returns true for the variants that the large shape of this number leaves out: three of four. Each shape keeps every
// layout, type, class of activation, size of the cache, and values that overflow. All large shapes together keep every
// pair of an activation and a layout, type, size of the cache and residual.
bool left_out(int variant, int large) { return (variant / 4 + large + large / 4) % 4 != 0; }

// Returns true if a region of two threads runs on two threads, or if there is no pool.
bool pool_is_shared() {
    std::thread::id ids[2];
    parallel(2, [&](int thread, int) { ids[thread] = std::this_thread::get_id(); });
    return !has_pool() || (ids[1] != std::thread::id() && ids[0] != ids[1]);
}

}  // namespace

int main() {
    if (!pool_is_shared()) {
        std::printf("asked for two threads, got one\n");
        return 1;
    }
    std::vector<int64_t> sizes{0, 31, 32, 33, 63, 64, 65, 129};
    for (int64_t s = 1; s <= 17; ++s) sizes.push_back(s);
    const std::vector<int64_t> channels{1, 2, 3, 16, 17, 64, 65, 127, 129, 168, 192, 257, 1025};
    int large = 0;
    unsigned checked = 0;  // a bit for each activation that had values
    for (int64_t s : sizes)
        for (int64_t c : channels) {
            const int64_t n = (s + c) % 4;  // 0 to 3 images
            if (n * c * s > kLarge) ++large;
            for (int variant = 0; variant < 48; ++variant) {
                if (n * c * s > kLarge && left_out(variant, large)) continue;
                Problem p{};
                p.n = n;
                p.c = c, p.s = s;
                p.channels_last = variant & 1;
                p.dtype = variant & 2 ? Dtype::bfloat16 : Dtype::float32;
                const int turn = static_cast<int>((s + c) / 4), which = variant / 4 % 3;  // n takes the remainder
                p.activation = static_cast<Activation>(which == 0 ? 0 : which == 1 ? 1 + turn % 4 : 5 + turn % 4);
                if (n * c * s) checked |= 1u << static_cast<int>(p.activation);
                p.slope = 0.1f;
                p.threads = 2;  // small shapes run in one thread all the same
                cache = variant % 24 < 12 ? int64_t{1} << 40 : 0;
                const bool overflows = variant >= 24;  // the squares do, so all is summed again in double
                p.residual = !overflows && (s + variant) % 2 ? &runs : nullptr;  // not null: run() makes one
                const float one = overflows ? 0x1p100f : 1.0f;
                const uint16_t half = overflows ? 0x7180 : 0x3f80;
                const bool right = p.dtype == Dtype::bfloat16 ? run<uint16_t>(p, half, one) : run<float>(p, one, one);
                if (!right) {
                    std::printf("wrong: n %ld c %ld s %ld variant %d\n", (long)p.n, (long)c, (long)s, variant);
                    return 1;
                }
            }
        }
    if (checked != (1u << 9) - 1) {
        std::printf("activations without values: %x\n", ~checked & ((1u << 9) - 1));
        return 1;
    }
    std::printf("%d runs, %s\n", runs, has_pool() ? "two threads" : "one thread");
}
