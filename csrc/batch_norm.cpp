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

template <class T, Activation A>
bool run(const Forward& f, bool streaming) {
    if (in_rows(f)) return forward_rows<T, A>(f, streaming);
    forward_maps<T, A>(f, streaming);
    return true;
}

template <class T, Activation A>
bool run(const Backward& b, bool streaming) {
    if (in_rows(b)) return backward_rows<T, A>(b, streaming);
    backward_maps<T, A>(b, streaming);
    return true;
}

template <class T, Activation A>
bool run(const Inference& f, bool streaming) {
    return in_rows(f) ? inference_rows<T, A>(f, streaming) : inference_maps<T, A>(f, streaming);
}

uintptr_t address(const void* p) { return reinterpret_cast<uintptr_t>(p); }
uintptr_t outputs(const Forward& f) { return address(f.z); }
uintptr_t outputs(const Backward& b) { return address(b.dx) | address(b.dresidual); }
uintptr_t outputs(const Inference& f) { return address(f.z); }

// Streaming stores need whole aligned vectors, so every row or map must be aligned.
template <class T, class P>
bool streams(const P& p) {
    const int64_t length = !in_rows(p) ? p.s : is_packed(p) ? kFloats : row_width(p);
    return outgrows_cache<T>(p) && (outputs(p) | length * sizeof(T)) % (kFloats * sizeof(T)) == 0;
}

template <class T, class P>
bool choose_activation(const P& p) {
    const bool streaming = streams<T>(p);
    switch (p.activation) {
        case Activation::none: return run<T, Activation::none>(p, streaming);
        case Activation::relu: return run<T, Activation::relu>(p, streaming);
        case Activation::leaky_relu: return run<T, Activation::leaky_relu>(p, streaming);
        case Activation::relu6: return run<T, Activation::relu6>(p, streaming);
        case Activation::hardswish: return run<T, Activation::hardswish>(p, streaming);
        case Activation::sigmoid: return run<T, Activation::sigmoid>(p, streaming);
        case Activation::silu: return run<T, Activation::silu>(p, streaming);
        case Activation::gelu: return run<T, Activation::gelu>(p, streaming);
        case Activation::gelu_tanh: return run<T, Activation::gelu_tanh>(p, streaming);
    }
    return false;
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
