// The C interface: turns the structs of a caller into those of the kernels.
#include "interface.h"

#include <cmath>
#include <new>
#include <vector>

#include "batch_norm.hpp"
#include "cache.hpp"
#include "running.hpp"
#include "threads.hpp"

using namespace batchnorm;

namespace {

constexpr int kNoMemory = -1;

Problem problem(const batchnorm_problem& p) {
    const Dtype dtype = p.bfloat16 ? Dtype::bfloat16 : Dtype::float32;
    const auto activation = static_cast<Activation>(p.activation);
    return {p.n, p.c, p.s, p.channels_last != 0, dtype, activation, p.slope, p.threads, p.gamma, p.beta, p.residual};
}

template <class P>
void run(bool (*kernel)(const P&), const P& p) {
    if (!kernel(p)) throw std::bad_alloc();
}

// No exception may leave a function that C calls.
template <class Body>
int guarded(const Body& body) {
    try {
        return body();
    } catch (...) {  // std::bad_alloc, or std::length_error of a vector
        return kNoMemory;
    }
}

// A part of the batch: `n` examples after the first `skipped` ones.
struct Part : Problem {
    int64_t offset;  // in bytes, of every tensor of values

    Part(const Problem& p, int64_t skipped, int64_t examples) : Problem(p) {
        n = examples;
        offset = skipped * c * s * (dtype == Dtype::bfloat16 ? 2 : 4);
        residual = from(residual);
    }
    const void* from(const void* tensor) const { return tensor ? static_cast<const char*>(tensor) + offset : nullptr; }
    void* from(void* tensor) const { return tensor ? static_cast<char*>(tensor) + offset : nullptr; }
};

// Calls body(part, index) for the virtual batches of `size` examples. A short last one is part of the one before it.
// One part is all if `size` is 0.
template <class Body>
void each_part(const Problem& p, int64_t size, const Body& body) {
    const int64_t parts = size && p.n > size ? p.n / size : 1;
    for (int64_t i = 0; i < parts; ++i) body(Part(p, i * size, i + 1 < parts ? size : p.n - i * size), i);
}

bool forward(const batchnorm_forward_call& f) {
    const Problem p = problem(f.problem);
    std::vector<float> scratch(2 * p.c);
    float* mean = scratch.data();
    each_part(p, f.size, [&](const Part& part, int64_t i) {
        if (f.batch) mean = f.batch + i * 2 * p.c;
        double* saved = f.saved + i * 2 * p.c;
        run(kernels().forward,
            Forward{part, part.from(f.x), f.eps, part.from(f.z), mean, mean + p.c, saved, saved + p.c});
    });
    const bool finite = update_running(f.running_mean, f.running_var, mean, mean + p.c, p.c, f.momentum);
    if (finite && f.count) ++*f.count;
    return finite;
}

void backward(const batchnorm_backward_call& b) {
    const Problem p = problem(b.problem);
    std::vector<float> sums(2 * p.c);
    std::vector<double> all(2 * p.c);
    each_part(p, b.size, [&](const Part& part, int64_t i) {
        const double* mean = b.saved + i * 2 * p.c;
        run(kernels().backward, Backward{part, part.from(b.x), part.from(b.dz), mean, mean + p.c, part.from(b.dx),
                                         part.from(b.dresidual), sums.data(), sums.data() + p.c, b.total, b.count});
        for (int64_t c = 0; c < 2 * p.c; ++c) all[c] += sums[c];
    });
    for (int64_t c = 0; c < p.c; ++c) {
        if (b.dgamma) b.dgamma[c] = static_cast<float>(all[c]);
        if (b.dbeta) b.dbeta[c] = static_cast<float>(all[p.c + c]);
    }
}

void inference(const batchnorm_inference_call& f) {
    const Problem p = problem(f.problem);
    std::vector<double> own;
    if (!f.saved) {
        own.resize(2 * p.c);
        for (int64_t c = 0; c < p.c; ++c) {
            own[c] = f.mean[c];
            own[p.c + c] = 1.0 / std::sqrt(f.var[c] + f.eps);
        }
    }
    const double* mean = f.saved ? f.saved : own.data();
    run(kernels().inference, Inference{p, f.x, mean, mean + p.c, f.z});
}

}  // namespace

const int64_t batchnorm_interface = 1;

int batchnorm_forward(const batchnorm_forward_call* call) {
    return guarded([&] { return forward(*call) ? 1 : 0; });
}

int batchnorm_backward(const batchnorm_backward_call* call) {
    return guarded([&] { return backward(*call), 0; });
}

int batchnorm_inference(const batchnorm_inference_call* call) {
    return guarded([&] { return inference(*call), 0; });
}

int batchnorm_running(const batchnorm_running_call* r) {
    return update_running(r->running_mean, r->running_var, r->mean, r->var, r->c, r->momentum) ? 1 : 0;
}

const char* batchnorm_target(void) { return kernels().target; }

int batchnorm_has_pool(void) { return has_pool() ? 1 : 0; }

int64_t batchnorm_last_level_cache(void) { return last_level_cache(); }
