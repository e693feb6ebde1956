// Running statistics.
#pragma once

#include <cstdint>

namespace batchnorm {

// running += momentum * (batch - running) for c channels, if every batch value is finite. Returns true if they are.
// Null running statistics are skipped.
bool update_running(float* running_mean, float* running_var, const float* mean, const float* var, int64_t c,
                    double momentum);

}  // namespace batchnorm
