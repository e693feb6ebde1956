/* A user of csrc/interface.h in plain C: calls every function, and checks the results against formulas in double.
   Prints "right", or what is not. */
#include "interface.h"

#include <math.h>
#include <stdio.h>

enum { N = 3, C = 5, S = 7, VALUES = N * S }; /* no multiples of a vector's width */

static const double eps = 1e-3, momentum = 0.25;
static int wrong = 0;

/* float32 results of sums of 21 values near 1. */
static void compare(const char* what, double found, double wanted) {
    if (fabs(found - wanted) <= 1e-5 * (1 + fabs(wanted))) return;
    wrong = 1;
    printf("%s: %.9g, wanted %.9g\n", what, found, wanted);
}

/* The place of channel c's value i, in (N, C, S) or in (N, S, C). */
static int at(int last, int i, int c) { return last ? i * C + c : (i / S * C + c) * S + i % S; }

static double input(int i, int c) { return sin(1 + 3.7 * i + 2.3 * c) + c; }
static double gradient(int i, int c) { return cos(2 + 1.9 * i + 4.1 * c); }
static double gamma_of(int c) { return 1.5 - 0.5 * c; }
static double beta_of(int c) { return 0.1 * c - 0.2; }

typedef struct {
    double mean, var, rstd, dgamma, dbeta;
} channel;

/* The sums of one channel, where the ReLU lets the gradient through. */
static channel summed(int c) {
    channel sums = {0, 0, 0, 0, 0};
    for (int i = 0; i < VALUES; ++i) sums.mean += input(i, c) / VALUES;
    for (int i = 0; i < VALUES; ++i) sums.var += pow(input(i, c) - sums.mean, 2) / VALUES;
    sums.rstd = 1 / sqrt(sums.var + eps);
    for (int i = 0; i < VALUES; ++i) {
        double normalized = (input(i, c) - sums.mean) * sums.rstd;
        if (gamma_of(c) * normalized + beta_of(c) <= 0) continue;
        sums.dgamma += gradient(i, c) * normalized;
        sums.dbeta += gradient(i, c);
    }
    return sums;
}

static void train_and_infer(int last) {
    float gamma[C], beta[C], x[N * C * S], dz[N * C * S], z[N * C * S], dx[N * C * S], dgamma[C], dbeta[C];
    float mean[C], var[C], batch[2 * C];
    double saved[2 * C];
    int64_t count = 4;
    for (int c = 0; c < C; ++c) {
        gamma[c] = (float)gamma_of(c), beta[c] = (float)beta_of(c), mean[c] = 0, var[c] = 1;
        for (int i = 0; i < VALUES; ++i)
            x[at(last, i, c)] = (float)input(i, c), dz[at(last, i, c)] = (float)gradient(i, c);
    }
    batchnorm_problem problem = {N, C, S, last, 0, 1 /* relu */, 1, 0, gamma, beta, NULL};
    batchnorm_forward_call forward = {problem, 0, eps, x, z, batch, saved, momentum, mean, var, &count};
    batchnorm_backward_call backward = {problem, 0, x, dz, saved, dx, NULL, dgamma, dbeta, NULL, 0};
    compare("finite", batchnorm_forward(&forward), 1);
    compare("count", (double)count, 5);
    compare("backward", batchnorm_backward(&backward), 0);
    for (int c = 0; c < C; ++c) {
        channel sums = summed(c);
        double unbiased = sums.var * VALUES / (VALUES - 1);
        compare("mean", batch[c], sums.mean);
        compare("variance", batch[C + c], unbiased);
        compare("running mean", mean[c], momentum * sums.mean);
        compare("running variance", var[c], 1 - momentum + momentum * unbiased);
        compare("dgamma", dgamma[c], sums.dgamma);
        compare("dbeta", dbeta[c], sums.dbeta);
        for (int i = 0; i < VALUES; ++i) {
            double normalized = (input(i, c) - sums.mean) * sums.rstd;
            double y = gamma_of(c) * normalized + beta_of(c), through = y > 0 ? gradient(i, c) : 0;
            double centered = through - sums.dbeta / VALUES - normalized * sums.dgamma / VALUES;
            compare("z", z[at(last, i, c)], y > 0 ? y : 0);
            compare("dx", dx[at(last, i, c)], gamma_of(c) * sums.rstd * centered);
        }
    }
    batchnorm_inference_call inference = {problem, eps, x, NULL, mean, var, z};
    compare("inference", batchnorm_inference(&inference), 0);
    for (int c = 0; c < C; ++c)
        for (int i = 0; i < VALUES; ++i) {
            double y = gamma_of(c) * (input(i, c) - mean[c]) / sqrt(var[c] + eps) + beta_of(c);
            compare("z in inference", z[at(last, i, c)], y > 0 ? y : 0);
        }
    float moved_mean[C] = {0}, moved_var[C] = {0};
    batchnorm_running_call running = {C, momentum, moved_mean, moved_var, batch, batch + C};
    compare("running", batchnorm_running(&running), 1);
    for (int c = 0; c < C; ++c) compare("moved", moved_mean[c], momentum * batch[c]);
    batch[0] = NAN;
    compare("running, not finite", batchnorm_running(&running), 0);
    compare("not moved", moved_mean[1], momentum * batch[1]);
}

int main(void) {
    train_and_infer(0);
    train_and_infer(1);
    const int pool = batchnorm_has_pool();
    compare("has a pool, 0 or 1", pool == 0 || pool == 1, 1);
    compare("has a cache", batchnorm_last_level_cache() > 0, 1);
    if (!wrong) printf("right: interface %d, %s\n", (int)batchnorm_interface, batchnorm_target());
    return wrong;
}
