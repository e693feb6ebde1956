// The OpenMP pool that torch already runs, so that no second one spins against it.
#pragma once

namespace batchnorm {

using Region = void (*)(void* data, int thread, int threads);

// Calls region(data, i, count) once on each of `threads` threads of torch's pool; alone on this thread if there is none.
void run_region(int threads, Region region, void* data);

// Whether torch's pool was found.
bool has_pool();

}  // namespace batchnorm

namespace {

// body(thread, threads) on each of up to `threads` threads.
template <class Body>
inline void parallel(int threads, const Body& body) {
    if (threads <= 1) return body(0, 1);
    batchnorm::run_region(
        threads, [](void* data, int thread, int count) { (*static_cast<const Body*>(data))(thread, count); },
        const_cast<Body*>(&body));
}

}  // namespace
