#include "cache.hpp"

#include <cstdio>

namespace batchnorm {
namespace {

// Reads the largest size that Linux reports for the caches of CPU 0; returns 0 if it reports none. glibc's sysconf is
// not used, because on AMD it may report ten times the real size.
int64_t largest_cache() {
    int64_t largest = 0;
    for (int index = 0; index < 8; ++index) {
        char path[64];
        std::snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
        std::FILE* file = std::fopen(path, "r");
        if (!file) break;
        long long size = 0;
        char unit = ' ';
        if (std::fscanf(file, "%lld%c", &size, &unit) >= 1) {
            const int64_t bytes = size << (unit == 'K' ? 10 : unit == 'M' ? 20 : 0);
            if (bytes > largest) largest = bytes;
        }
        std::fclose(file);
    }
    return largest;
}

}  // namespace

int64_t last_level_cache() {
    static const int64_t bytes = largest_cache();
    return bytes > 0 ? bytes : int64_t{32} << 20;
}

}  // namespace batchnorm
