// The Python bindings. Tensors are passed by address, because DLPack takes 3 us a tensor, more than all the arithmetic
// of a small batch. `batchnorm.kernels.bindings` is the only caller and guarantees dtype, layout and size.
#include <nanobind/nanobind.h>

#include <cmath>
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

// A part of the batch: `n` examples after the first `skipped` ones.
struct Part : Problem {
    int64_t offset;  // in bytes, of every tensor of values

    Part(const Problem& p, int64_t skipped, int64_t examples) : Problem(p) {
        n = examples;
        offset = skipped * c * s * (dtype == Dtype::bfloat16 ? 2 : 4);
        residual = at<const void>(from(reinterpret_cast<uintptr_t>(residual)));
    }
    uintptr_t from(uintptr_t tensor) const { return tensor ? tensor + offset : 0; }
};

// Calls body(part, index) for the virtual batches of `size` examples. A short last one is part of the one before it.
// One part is all if `size` is 0.
template <class Body>
void each_part(const Problem& p, int64_t size, const Body& body) {
    const int64_t parts = size && p.n > size ? p.n / size : 1;
    for (int64_t i = 0; i < parts; ++i) body(Part(p, i * size, i + 1 < parts ? size : p.n - i * size), i);
}

// Writes mean and unbiased variance to `batch` if it is given, and mean and rstd to `saved`; both are (2, C) for each
// virtual batch. Returns true if the batch statistics are finite. Only then do given running statistics and `count`
// move. They move by the last virtual batch.
bool forward(const Problem& p, uintptr_t x, double eps, uintptr_t z, uintptr_t batch, uintptr_t saved,
             uintptr_t running_mean, uintptr_t running_var, double momentum, uintptr_t count, int64_t size) {
    std::vector<float> scratch(2 * p.c);
    float* mean = scratch.data();
    each_part(p, size, [&](const Part& part, int64_t i) {
        if (batch) mean = at<float>(batch) + i * 2 * p.c;
        double* saved_mean = at<double>(saved) + i * 2 * p.c;
        run(kernels().forward, Forward{part, at<const void>(part.from(x)), eps, at<void>(part.from(z)), mean,
                                       mean + p.c, saved_mean, saved_mean + p.c});
    });
    const bool finite =
        update_running(at<float>(running_mean), at<float>(running_var), mean, mean + p.c, p.c, momentum);
    if (finite && count) ++*at<int64_t>(count);
    return finite;
}

void backward(const Problem& p, uintptr_t x, uintptr_t dz, uintptr_t saved, uintptr_t dx, uintptr_t dresidual,
              uintptr_t dweight, uintptr_t dbias, uintptr_t total, int64_t count, int64_t size) {
    std::vector<float> sums(2 * p.c);
    std::vector<double> all(2 * p.c);
    each_part(p, size, [&](const Part& part, int64_t i) {
        const double* mean = at<const double>(saved) + i * 2 * p.c;
        run(kernels().backward, Backward{part, at<const void>(part.from(x)), at<const void>(part.from(dz)), mean,
                                         mean + p.c, at<void>(part.from(dx)), at<void>(part.from(dresidual)),
                                         sums.data(), sums.data() + p.c, at<const double>(total), count});
        for (int64_t c = 0; c < 2 * p.c; ++c) all[c] += sums[c];
    });
    for (int64_t c = 0; c < p.c; ++c) {
        if (dweight) at<float>(dweight)[c] = static_cast<float>(all[c]);
        if (dbias) at<float>(dbias)[c] = static_cast<float>(all[p.c + c]);
    }
}

// Normalizes by given mean and rstd, (2, C).
void normalize(const Problem& p, uintptr_t x, uintptr_t saved, uintptr_t z) {
    const double* mean = at<const double>(saved);
    run(kernels().inference, Inference{p, at<const void>(x), mean, mean + p.c, at<void>(z)});
}

void inference(const Problem& p, uintptr_t x, uintptr_t mean, uintptr_t var, double eps, uintptr_t z) {
    std::vector<double> saved(2 * p.c);
    for (int64_t c = 0; c < p.c; ++c) {
        saved[c] = at<const float>(mean)[c];
        saved[p.c + c] = 1.0 / std::sqrt(at<const float>(var)[c] + eps);
    }
    normalize(p, x, reinterpret_cast<uintptr_t>(saved.data()), z);
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
          "running_var"_a, "momentum"_a, "count"_a, "size"_a);
    m.def("backward", backward, "problem"_a, "x"_a, "dz"_a, "saved"_a, "dx"_a, "dresidual"_a, "dweight"_a, "dbias"_a,
          "total"_a, "count"_a, "size"_a);
    m.def("normalize", normalize, "problem"_a, "x"_a, "saved"_a, "z"_a);
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
