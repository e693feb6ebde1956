// Batch normalization fused with its activation, z = g(BN(x)) (Alg. 1, Sec. 3.2), and its gradient. No Python, no torch.
#pragma once

#include <cstdint>

namespace batchnorm {

enum class Dtype { float32, bfloat16 };
enum class Activation { none, relu, leaky_relu };

// What the three passes share. x, z, dz, dx are dense, of one dtype and one layout: (N, C, S), or (N, S, C) if
// channels_last. Statistics are double, gamma and beta float32; either may be null for 1 and 0.
struct Problem {
    int64_t n, c, s;
    bool channels_last;
    Dtype dtype;
    Activation activation;
    float slope;  // of the leaky ReLU
    int threads;
    const float* gamma;  // (C)
    const float* beta;   // (C)
};

struct Forward : Problem {
    const void* x;
    double eps;
    void* z;
    float* mean;         // (C)
    float* var;          // (C), unbiased; NaN for a count of one
    double* saved_mean;  // (C)
    double* saved_rstd;  // (C), 1 / sqrt(biased var + eps)
};

struct Backward : Problem {
    const void* x;
    const void* dz;
    const double* mean;
    const double* rstd;
    void* dx;       // null if nobody asks
    float* dgamma;  // (C)
    float* dbeta;   // (C)
};

struct Inference : Problem {
    const void* x;
    const float* mean;  // (C)
    const float* var;   // (C)
    double eps;
    void* z;
};

// The loops, compiled for one instruction set. Each returns false if it found no memory for its scratch.
struct Kernels {
    const char* target;
    bool (*forward)(const Forward&);
    bool (*backward)(const Backward&);
    bool (*inference)(const Inference&);
};

// The widest that this machine runs.
const Kernels& kernels();

// running += momentum * (batch - running), all (C), unless a batch value is not finite; returns whether they are. Null
// running statistics stay away.
bool update_running(float* running_mean, float* running_var, const float* mean, const float* var, int64_t c,
                    double momentum);

// Bytes of the last-level cache.
int64_t last_level_cache();

}  // namespace batchnorm
