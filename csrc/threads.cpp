#include "threads.hpp"

#include <dlfcn.h>

namespace batchnorm {
namespace {

// The three functions of GNU's OpenMP that a parallel region needs. LLVM's and Intel's runtimes export them too.
struct OpenMP {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
    int (*thread)() = nullptr;
    int (*threads)() = nullptr;

    OpenMP() {
        // Search in the order in which the dynamic linker binds torch's own calls: global symbols (LD_PRELOAD), then
        // the library that torch loaded, whatever its file name. Linking to libgomp by name would load a second one.
        if (!find(RTLD_DEFAULT))
            if (void* torch = dlopen("libtorch_cpu.so", RTLD_NOLOAD | RTLD_LAZY)) find(torch);
    }

    bool find(void* where) {
        parallel = reinterpret_cast<decltype(parallel)>(dlsym(where, "GOMP_parallel"));
        thread = reinterpret_cast<decltype(thread)>(dlsym(where, "omp_get_thread_num"));
        threads = reinterpret_cast<decltype(threads)>(dlsym(where, "omp_get_num_threads"));
        return parallel && thread && threads;
    }
};

const OpenMP& openmp() {
    static const OpenMP instance;
    return instance;
}

struct Call {
    Region region;
    void* data;
};

void enter(void* data) {
    const Call& call = *static_cast<Call*>(data);
    call.region(call.data, openmp().thread(), openmp().threads());
}

}  // namespace

bool has_pool() { return openmp().parallel && openmp().thread && openmp().threads; }

void run_region(int threads, Region region, void* data) {
    if (threads <= 1 || !has_pool()) return region(data, 0, 1);
    Call call{region, data};
    openmp().parallel(enter, &call, static_cast<unsigned>(threads), 0);
}

}  // namespace batchnorm
