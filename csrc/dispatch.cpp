// The choice of instruction set.
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "batch_norm.hpp"

namespace batchnorm {

#if defined(__x86_64__)
extern const Kernels kernels_v2, kernels_v3, kernels_v4, kernels_v4_bf16;

namespace {

// The registers eax, ebx, ecx and edx that the processor gives for a leaf, 0 if it does not have the leaf.
struct Leaf {
    unsigned a = 0, b = 0, c = 0, d = 0;

    explicit Leaf(unsigned leaf, unsigned part = 0) { __get_cpuid_count(leaf, part, &a, &b, &c, &d); }
};

// The register sets that the operating system saves.
unsigned saved_registers() {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

// Returns true if all bits of `wanted` are set.
bool has(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }

constexpr unsigned bit(int number) { return 1u << number; }

// The processor is asked here, because __builtin_cpu_supports finds no instruction set at all with Zig's runtime.
const Kernels& widest() {
    // movbe, f16c, osxsave, avx, fma; lzcnt; bmi1, avx2, bmi2; avx512 f, dq, cd, bw, vl
    constexpr unsigned v3_c1 = bit(22) | bit(29) | bit(27) | bit(28) | bit(12), v3_extended = bit(5);
    constexpr unsigned v3_b7 = bit(3) | bit(5) | bit(8), v4_b7 = bit(16) | bit(17) | bit(28) | bit(30) | bit(31);
    constexpr unsigned ymm = 0x6, zmm = 0xe6, avx512bf16 = bit(5);
    const unsigned b7 = Leaf(7).b;
    const bool v3 = has(Leaf(1).c, v3_c1) && has(Leaf(0x80000001).c, v3_extended) && has(b7, v3_b7);
    if (!v3 || !has(saved_registers(), ymm)) return kernels_v2;
    if (!has(b7, v4_b7) || !has(saved_registers(), zmm)) return kernels_v3;
    return has(Leaf(7, 1).a, avx512bf16) ? kernels_v4_bf16 : kernels_v4;
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
