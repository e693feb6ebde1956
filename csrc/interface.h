/* The C interface of the kernels. The library links to neither Python nor torch, so one build serves every release of
   both. `batchnorm/kernels/library.py` packs the structs. `bindings.py` there checks dtype, layout and size; the
   library does not. */
#ifndef BATCHNORM_INTERFACE_H
#define BATCHNORM_INTERFACE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default) /* the rest of the library is hidden */

/* What all calls share. x, residual, z and their gradients are dense and share one dtype, float32 or bfloat16, and one
   layout: (N, C, S), or (N, S, C) if channels_last. */
typedef struct {
    int64_t n, c, s;
    int32_t channels_last, bfloat16;
    int32_t activation; /* 0 none, 1 ReLU, 2 leaky, 3 ReLU6, 4 Hardswish, 5 sigmoid, 6 SiLU, 7 GELU, 8 its tanh form */
    int32_t threads;    /* 1 or more */
    float slope;        /* of the leaky ReLU below 0 */
    const float* gamma; /* (C), or null for 1 */
    const float* beta;  /* (C), or null for 0 */
    const void* residual; /* or null */
} batchnorm_problem;

typedef struct {
    batchnorm_problem problem;
    int64_t size; /* examples in a virtual batch; a short last one is part of the one before it. 0: all are one batch */
    double eps;
    const void* x;
    void* z;             /* or null if only the statistics are wanted */
    float* batch;        /* mean and unbiased variance of each virtual batch, (2, C), or null */
    double* saved;       /* mean and rstd of each virtual batch, (2, C) */
    double momentum;     /* of the running statistics */
    float* running_mean; /* (C), or null for both. They move by the last virtual batch, if it is finite. */
    float* running_var;
    int64_t* count; /* increased by 1 if what they move by is finite, or null */
} batchnorm_forward_call;

typedef struct {
    batchnorm_problem problem;
    int64_t size; /* as in the forward */
    const void* x;
    const void* dz;
    const double* saved; /* from the forward */
    void* dx;            /* or null */
    void* dresidual;     /* or null; written only if dx is */
    float* dgamma;       /* (C), or null */
    float* dbeta;        /* (C), or null */
    const double* total; /* (2, C), dbeta and dgamma of a batch of which x is a part, or null if x is all */
    int64_t count;       /* values per channel of that batch */
} batchnorm_backward_call;

typedef struct {
    batchnorm_problem problem;
    double eps;
    const void* x;
    const double* saved; /* mean and rstd, (2, C), or null to take mean and var */
    const float* mean;   /* (C) */
    const float* var;    /* (C) */
    void* z;
} batchnorm_inference_call;

typedef struct {
    int64_t c;
    double momentum;
    float* running_mean; /* (C) */
    float* running_var;
    const float* mean;
    const float* var;
} batchnorm_running_call;

/* Return 1 if the statistics of the batch, or of the last virtual batch, are finite, 0 if they are not, -1 if memory
   ran out or the activation is unknown. */
int batchnorm_forward(const batchnorm_forward_call*);

/* Return 0, or -1 if memory ran out or the activation is unknown. */
int batchnorm_backward(const batchnorm_backward_call*);
int batchnorm_inference(const batchnorm_inference_call*);

/* Move the running statistics if the batch statistics are finite. Return 1 if they are, or 0. */
int batchnorm_running(const batchnorm_running_call*);

/* The number of this interface. It grows with every change above, so that a caller knows a library that is not its own.
 */
extern const int64_t batchnorm_interface;

/* Return the instruction set in use, such as "x86-64-v4". */
const char* batchnorm_target(void);

/* Return 1 if torch's pool of threads was found, or 0. */
int batchnorm_has_pool(void);

/* Return the size of the last-level cache in bytes. */
int64_t batchnorm_last_level_cache(void);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

#endif
