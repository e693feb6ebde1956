// Parallel regions on the OpenMP pool that torch already runs. A second pool would compete with it for the cores.
#pragma once

namespace batchnorm {

using Region = void (*)(void* data, int thread, int threads);

// Calls region(data, i, count) once on each of `threads` threads of torch's pool. Without a pool it makes one call, on
// this thread.
void run_region(int threads, Region region, void* data);

// Returns true if torch's pool was found.
bool has_pool();

}  // namespace batchnorm

namespace {

// Calls body(thread, count) on each of up to `threads` threads.
template <class Body>
inline void parallel(int threads, const Body& body) {
    if (threads <= 1) return body(0, 1);
    batchnorm::run_region(
        threads, [](void* data, int thread, int count) { (*static_cast<const Body*>(data))(thread, count); },
        const_cast<Body*>(&body));
}

}  // namespace
