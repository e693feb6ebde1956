// The choice of instruction set.
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

// The environment may ask for a narrower one: BATCHNORM_TARGET=x86-64-v2. The tests do.
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

}  // namespace batchnorm
