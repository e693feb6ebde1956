#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "batch_norm.hpp"

namespace batchnorm {

#if defined(__x86_64__)
extern const Kernels kernels_v2, kernels_v3, kernels_v4, kernels_v4_bf16;

namespace {

const Kernels& widest() {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi") ||
        !__builtin_cpu_supports("bmi2"))
        return kernels_v2;
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

namespace {

// Of the deepest cache, as Linux tells it. glibc's sysconf is no help: on AMD it may report ten times the cache.
int64_t deepest_cache() {
    int64_t bytes = 0;
    for (int index = 0; index < 8; ++index) {
        char path[64];
        std::snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
        std::FILE* file = std::fopen(path, "r");
        if (!file) break;
        long long size = 0;
        char unit = ' ';
        if (std::fscanf(file, "%lld%c", &size, &unit) >= 1) {
            const int64_t here = size << (unit == 'K' ? 10 : unit == 'M' ? 20 : 0);
            if (here > bytes) bytes = here;
        }
        std::fclose(file);
    }
    return bytes;
}

}  // namespace

int64_t last_level_cache() {
    static const int64_t bytes = deepest_cache();
    return bytes > 0 ? bytes : int64_t{32} << 20;
}

}  // namespace batchnorm
