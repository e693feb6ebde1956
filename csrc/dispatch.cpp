#include <unistd.h>

#include <cmath>

#include "batch_norm.hpp"

namespace batchnorm {

#if defined(__x86_64__)
extern const Kernels kernels_v2, kernels_v3, kernels_v4;

const Kernels& kernels() {
    static const Kernels& best = [&]() -> const Kernels& {
        bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
        return v4 ? kernels_v4 : v3 ? kernels_v3 : kernels_v2;
    }();
    return best;
}
#else
extern const Kernels kernels_native;

const Kernels& kernels() { return kernels_native; }
#endif

bool update_running(float* running_mean, float* running_var, const float* mean, const float* var, int64_t c,
                    double momentum) {
    bool finite = true;
    for (int64_t i = 0; i < c; ++i) finite &= std::isfinite(mean[i]) && std::isfinite(var[i]);
    if (!finite) return false;
    // torch's lerp: exact at both ends.
    const float w = static_cast<float>(momentum);
    auto blend = [w](float from, float to) { return w < 0.5f ? from + w * (to - from) : to - (to - from) * (1 - w); };
    for (int64_t i = 0; i < c; ++i) {
        running_mean[i] = blend(running_mean[i], mean[i]);
        running_var[i] = blend(running_var[i], var[i]);
    }
    return true;
}

int64_t last_level_cache() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
    static const int64_t bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (bytes > 0) return bytes;
#endif
    return int64_t{32} << 20;
}

}  // namespace batchnorm
