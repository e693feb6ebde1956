// Selects the loops for a problem. Compiled once for each instruction set.
#include "batch_norm.hpp"

#include "cache.hpp"
#include "maps.hpp"
#include "rows.hpp"

namespace {

template <class T>
bool outgrows_cache(const Problem& p) {
    return values(p) * int64_t{sizeof(T)} > last_level_cache();
}

template <class T, Activation A, bool Streaming>
bool run(const Forward& f) {
    if (in_rows(f)) return forward_rows<T, A, Streaming>(f);
    forward_maps<T, A, Streaming>(f);
    return true;
}

template <class T, Activation A, bool Streaming>
bool run(const Backward& b) {
    if (in_rows(b)) return backward_rows<T, A, Streaming>(b);
    backward_maps<T, A, Streaming>(b);
    return true;
}

template <class T, Activation A, bool Streaming>
bool run(const Inference& f) {
    return in_rows(f) ? inference_rows<T, A, Streaming>(f) : inference_maps<T, A, Streaming>(f);
}

const void* output(const Forward& f) { return f.z; }
const void* output(const Backward& b) { return b.dx; }
const void* output(const Inference& f) { return f.z; }

template <class T, Activation A, class P>
bool choose_store(const P& p) {
    // Streaming stores need whole aligned vectors, so every row or map must be aligned.
    const int64_t length = !in_rows(p) ? p.s : is_packed(p) ? kFloats : row_width(p);
    const bool aligned = (reinterpret_cast<uintptr_t>(output(p)) | length * sizeof(T)) % (kFloats * sizeof(T)) == 0;
    return aligned && outgrows_cache<T>(p) ? run<T, A, true>(p) : run<T, A, false>(p);
}

template <class T, class P>
bool choose_activation(const P& p) {
    switch (p.activation) {
        case Activation::relu: return choose_store<T, Activation::relu>(p);
        case Activation::leaky_relu: return choose_store<T, Activation::leaky_relu>(p);
        default: return choose_store<T, Activation::none>(p);
    }
}

template <class P>
bool choose(const P& p) {
    if (!p.c) return true;
    return p.dtype == Dtype::bfloat16 ? choose_activation<bfloat16>(p) : choose_activation<float>(p);
}

}  // namespace

namespace batchnorm {

extern const Kernels BATCHNORM_KERNELS;
const Kernels BATCHNORM_KERNELS{BATCHNORM_TARGET, choose<Forward>, choose<Backward>, choose<Inference>};

}  // namespace batchnorm
