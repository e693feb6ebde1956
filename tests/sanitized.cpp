// Every loop of csrc/batch_norm.cpp over blocks of exactly the size it may touch, for a build with sanitizers.
#include <cmath>
#include <cstdio>
#include <memory>
#include <vector>

#include "batch_norm.hpp"

using namespace batchnorm;

namespace batchnorm {
extern const Kernels kernels_checked;

// Stands in for dispatch.cpp's, so that small tensors take the streaming stores too.
static int64_t cache = 0;
int64_t last_level_cache() { return cache; }
}  // namespace batchnorm

namespace {

int runs = 0;

// Without a byte to spare at either end: the sanitizer watches both.
template <class T>
std::unique_ptr<T[]> block(int64_t n, T fill) {
    std::unique_ptr<T[]> p(new T[n]);
    for (int64_t i = 0; i < n; ++i) p[i] = fill;
    return p;
}

template <class T>
bool run(const Problem& shape, T one, float scale) {
    const int64_t values = shape.n * shape.c * shape.s, c = shape.c;
    auto x = block<T>(values, one), dz = block<T>(values, one), z = block<T>(values, T{}), dx = block<T>(values, T{});
    for (int64_t i = 0; i < values; i += 3) x[i] = T{};
    auto gamma = block<float>(c, 1.5f), beta = block<float>(c, -0.5f), mean = block<float>(c, 0), var = block<float>(c, 0);
    auto saved_mean = block<double>(c, 0), saved_rstd = block<double>(c, 0);
    Problem p = shape;
    p.gamma = gamma.get();
    p.beta = beta.get();
    bool good = kernels_checked.forward(
        Forward{p, x.get(), 1e-5, z.get(), mean.get(), var.get(), saved_mean.get(), saved_rstd.get()});
    for (int64_t i = 0; i < c; ++i) good &= values == 0 || (mean[i] >= 0 && mean[i] <= scale);
    auto dgamma = block<float>(c, 0), dbeta = block<float>(c, NAN);
    good &= kernels_checked.backward(Backward{p, x.get(), dz.get(), saved_mean.get(), saved_rstd.get(), dx.get(),
                                              dgamma.get(), dbeta.get()});
    for (int64_t i = 0; i < c; ++i) good &= dbeta[i] >= 0 && dbeta[i] <= scale * static_cast<float>(shape.n * shape.s);
    auto one_var = block<float>(c, 1);
    good &= kernels_checked.inference(Inference{p, x.get(), mean.get(), one_var.get(), 1e-5, z.get()});
    ++runs;
    return good;
}

}  // namespace

int main() {
    const std::vector<int64_t> sizes{1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129};
    const std::vector<int64_t> channels{1, 2, 3, 16, 17, 64, 65, 127, 129, 257, 1025};
    for (int64_t s : sizes)
        for (int64_t c : channels)
            for (int variant = 0; variant < 48; ++variant) {
                Problem p{};
                p.n = (s + c) % 4;  // none to three images
                p.c = c, p.s = s;
                p.channels_last = variant & 1;
                p.dtype = variant & 2 ? Dtype::bfloat16 : Dtype::float32;
                p.activation = static_cast<Activation>(variant / 4 % 3);
                p.slope = 0.1f;
                p.threads = 1;
                cache = variant % 24 < 12 ? int64_t{1} << 40 : 0;
                const bool large = variant >= 24;  // its squares overflow float, so that all is summed again in double
                const float one = large ? 0x1p100f : 1.0f;
                const uint16_t half = large ? 0x7180 : 0x3f80;
                const bool good = p.dtype == Dtype::bfloat16 ? run<uint16_t>(p, half, one) : run<float>(p, one, one);
                if (!good) {
                    std::printf("wrong: n %ld c %ld s %ld variant %d\n", (long)p.n, (long)c, (long)s, variant);
                    return 1;
                }
            }
    std::printf("%d runs\n", runs);
}
