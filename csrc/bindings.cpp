// The Python bindings. Tensors are passed by address, because DLPack takes 3 us a tensor, more than all the arithmetic
// of a small batch. `batchnorm.kernels.bindings` is the only caller and guarantees dtype, layout and size.
#include <nanobind/nanobind.h>

#include <new>
#include <vector>

#include "batch_norm.hpp"
#include "cache.hpp"
#include "running.hpp"
#include "threads.hpp"

namespace nb = nanobind;
using namespace batchnorm;
using namespace nb::literals;

namespace {

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

template <class P>
void run(bool (*kernel)(const P&), const P& p) {
    nb::gil_scoped_release released;
    if (!kernel(p)) throw std::bad_alloc();
}

// Writes mean and unbiased variance to `batch` if it is given, and mean and rstd to `saved`; both are (2, C). Returns
// true if the batch statistics are finite. Only then do given running statistics and `count` move.
bool forward(const Problem& p, uintptr_t x, double eps, uintptr_t z, uintptr_t batch, uintptr_t saved,
             uintptr_t running_mean, uintptr_t running_var, double momentum, uintptr_t count) {
    std::vector<float> scratch(batch ? 0 : 2 * p.c);
    float *mean = batch ? at<float>(batch) : scratch.data(), *var = mean + p.c;
    double* saved_mean = at<double>(saved);
    run(kernels().forward, Forward{p, at<const void>(x), eps, at<void>(z), mean, var, saved_mean, saved_mean + p.c});
    const bool finite = update_running(at<float>(running_mean), at<float>(running_var), mean, var, p.c, momentum);
    if (finite && count) ++*at<int64_t>(count);
    return finite;
}

void backward(const Problem& p, uintptr_t x, uintptr_t dz, uintptr_t saved, uintptr_t dx, uintptr_t dresidual,
              uintptr_t dweight, uintptr_t dbias) {
    const double* saved_mean = at<const double>(saved);
    run(kernels().backward, Backward{p, at<const void>(x), at<const void>(dz), saved_mean, saved_mean + p.c,
                                     at<void>(dx), at<void>(dresidual), at<float>(dweight), at<float>(dbias)});
}

void inference(const Problem& p, uintptr_t x, uintptr_t mean, uintptr_t var, double eps, uintptr_t z) {
    run(kernels().inference,
        Inference{p, at<const void>(x), at<const float>(mean), at<const float>(var), eps, at<void>(z)});
}

}  // namespace

NB_MODULE(_kernels, m) {
    nb::class_<Problem>(m, "Problem")
        .def(
            "__init__",
            [](Problem* self, int64_t n, int64_t c, int64_t s, bool channels_last, bool bfloat16, int activation,
               float slope, int threads, uintptr_t weight, uintptr_t bias, uintptr_t residual) {
                const Dtype dtype = bfloat16 ? Dtype::bfloat16 : Dtype::float32;
                const auto g = static_cast<Activation>(activation);
                const float *gamma = at<const float>(weight), *beta = at<const float>(bias);
                new (self) Problem{n, c, s, channels_last, dtype, g, slope, threads, gamma, beta, at<void>(residual)};
            },
            "n"_a, "c"_a, "s"_a, "channels_last"_a, "bfloat16"_a, "activation"_a, "slope"_a, "threads"_a, "weight"_a,
            "bias"_a, "residual"_a);
    m.def("forward", forward, "problem"_a, "x"_a, "eps"_a, "z"_a, "batch"_a, "saved"_a, "running_mean"_a,
          "running_var"_a, "momentum"_a, "count"_a);
    m.def("backward", backward, "problem"_a, "x"_a, "dz"_a, "saved"_a, "dx"_a, "dresidual"_a, "dweight"_a, "dbias"_a);
    m.def("inference", inference, "problem"_a, "x"_a, "mean"_a, "var"_a, "eps"_a, "z"_a);
    m.def(
        "update_running",
        [](uintptr_t running_mean, uintptr_t running_var, uintptr_t mean, uintptr_t var, int64_t c, double momentum) {
            return update_running(at<float>(running_mean), at<float>(running_var), at<const float>(mean),
                                  at<const float>(var), c, momentum);
        },
        "running_mean"_a, "running_var"_a, "mean"_a, "var"_a, "c"_a, "momentum"_a);
    m.def("target", [] { return kernels().target; });
    m.def("has_pool", has_pool);
    m.def("last_level_cache", last_level_cache);
}
