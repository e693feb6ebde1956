// The size of the last-level cache, which decides how large outputs are stored.
#pragma once

#include <cstdint>

namespace batchnorm {

// Size in bytes, or 32 MiB if Linux does not tell it.
int64_t last_level_cache();

}  // namespace batchnorm
