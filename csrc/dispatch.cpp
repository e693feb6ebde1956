#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "batch_norm.hpp"

namespace batchnorm {

#if defined(__x86_64__)
extern const Kernels kernels_v2, kernels_v3, kernels_v4, kernels_v4_bf16;

namespace {

const Kernels& widest() {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return kernels_v2;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return kernels_v3;
    return __builtin_cpu_supports("avx512bf16") ? kernels_v4_bf16 : kernels_v4;
}

// The environment may ask for a narrower one, as the tests do: BATCHNORM_TARGET=x86-64-v2.
const Kernels& chosen() {
    const char* asked = std::getenv("BATCHNORM_TARGET");
    for (const Kernels* narrower : {&kernels_v2, &kernels_v3, &kernels_v4}) {
        if (!asked || narrower == &widest()) break;
        if (!std::strcmp(asked, narrower->target)) return *narrower;
    }
    return widest();
}

}  // namespace

const Kernels& kernels() {
    static const Kernels& best = chosen();
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
    if (!finite || !running_mean) return finite;
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
