// The thread pool: runs the chunks of one job at a time, claimed through one atomic counter.
#pragma once

#include <limits>
#include <type_traits>

#include "abi.h"

// Run body(0) … body(chunks-1), each once, on the pool and on the calling thread; return when all are done. The caller
// never waits for a worker that has not started: on a busy machine it does the work itself. Chunks are claimed in
// ascending order. A call from inside a chunk, or while another thread's job runs, runs on the calling thread alone.
//
// `work` estimates the job's cost: the number of weights or elements that all chunks read, or the equivalent in time. One
// thread takes part for every kWorkPerThread, so a small job runs on the caller alone: beside other processes, waiting for
// a thread that lost its core would take longer than the work.
void run_chunks(int64_t chunks, double work, void (*body)(void* context, int64_t chunk), void* context);

constexpr double kWorkPerThread = 1 << 17;

// Elements of one chunk: fewer are not worth waking another thread for.
constexpr int64_t kGrainElements = 16384;

template <typename Body>
void parallel(int64_t chunks, double work, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run_chunks(
        chunks, work, [](void* context, int64_t chunk) { (*static_cast<Plain*>(context))(chunk); },
        const_cast<void*>(static_cast<const void*>(&body)));
}

// The same for chunks that are each worth a thread.
template <typename Body>
void parallel(int64_t chunks, Body&& body) {
    parallel(chunks, std::numeric_limits<double>::infinity(), body);
}

// Threads that may work on a job, the caller included.
int64_t pool_threads();

VT_EXPORT int64_t vt_threads();
// Number of jobs so far that were offered to more than one thread: for tests.
VT_EXPORT int64_t vt_shared_jobs();
VT_EXPORT void vt_set_threads(int64_t threads);
