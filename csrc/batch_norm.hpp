// Batch normalization fused with what follows it, z = g(BN(x) + residual) (Alg. 1, Sec. 3.2), and its gradient. This
// code uses neither Python nor torch.
#pragma once

#include <cstdint>

namespace batchnorm {

enum class Dtype { float32, bfloat16 };
enum class Activation { none, relu, leaky_relu, relu6, hardswish, sigmoid, silu, gelu, gelu_tanh };

// The arguments of all three kernels. x, residual, z and their gradients are dense and share one dtype and one layout:
// (N, C, S), or (N, S, C) if channels_last. gamma and beta are float32. Either may be null, which stands for 1 and 0.
struct Problem {
    int64_t n, c, s;
    bool channels_last;
    Dtype dtype;
    Activation activation;
    float slope;  // of the leaky ReLU below 0
    int threads;
    const float* gamma;    // (C)
    const float* beta;     // (C)
    const void* residual;  // null for none. The backward reads it if there is an activation.
};

struct Forward : Problem {
    const void* x;
    double eps;
    void* z;             // null if only the statistics are wanted
    float* mean;         // (C)
    float* var;          // (C), unbiased; NaN for a count of one
    double* saved_mean;  // (C)
    double* saved_rstd;  // (C), 1 / sqrt(biased var + eps)
};

struct Backward : Problem {
    const void* x;
    const void* dz;
    const double* mean;             // (C)
    const double* rstd;             // (C)
    void* dx;                       // null if not wanted
    void* dresidual;                // null if not wanted. Not written unless dx is wanted too.
    float* dgamma;                  // (C), null if not wanted
    float* dbeta;                   // (C), null if not wanted
    const double* total = nullptr;  // (2, C), dbeta and dgamma of a batch of which x is a part, or null if x is all
    int64_t count = 0;              // values per channel of that batch
};

struct Inference : Problem {
    const void* x;
    const double* mean;  // (C)
    const double* rstd;  // (C)
    void* z;
};

// The kernels, compiled for one instruction set. Each returns false if its scratch memory could not be allocated.
struct Kernels {
    const char* target;
    bool (*forward)(const Forward&);
    bool (*backward)(const Backward&);
    bool (*inference)(const Inference&);
};

// The kernels of the widest instruction set that this machine runs.
const Kernels& kernels();

}  // namespace batchnorm
