#include "running.hpp"

#include <cmath>

namespace batchnorm {

bool update_running(float* running_mean, float* running_var, const float* mean, const float* var, int64_t c,
                    double momentum) {
    bool finite = true;
    for (int64_t i = 0; i < c; ++i) finite &= std::isfinite(mean[i]) && std::isfinite(var[i]);
    if (!finite || !running_mean) return finite;
    // The formula of torch's lerp, which is exact at both ends.
    const float w = static_cast<float>(momentum);
    auto blend = [w](float from, float to) { return w < 0.5f ? from + w * (to - from) : to - (to - from) * (1 - w); };
    for (int64_t i = 0; i < c; ++i) {
        running_mean[i] = blend(running_mean[i], mean[i]);
        running_var[i] = blend(running_var[i], var[i]);
    }
    return true;
}

}  // namespace batchnorm
