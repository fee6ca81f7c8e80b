// The threads that kernels run on: chunks of one job, claimed through one counter. Knows nothing of what a chunk is.
#pragma once

#include <limits>
#include <type_traits>

#include "abi.h"

// Run body(0) … body(chunks-1), each once, on the pool and on the calling thread; return when all are done. The caller
// never waits for a thread that has not begun: with a busy neighbour it does the work itself. Chunks are claimed in
// ascending order. A call from inside a chunk, or while another thread's job runs, is done by the caller alone.
//
// `work` is about how many weights or elements all chunks read together, or as long. A thread takes part for every kWorkEach
// of it, so a small job is the caller's alone: beside other processes, waiting for a thread that lost its core would take
// longer than the work.
void run_chunks(int64_t chunks, int64_t work, void (*body)(void* context, int64_t chunk), void* context);

constexpr int64_t kWorkEach = 1 << 17;

template <typename Body>
void parallel(int64_t chunks, int64_t work, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run_chunks(
        chunks, work, [](void* context, int64_t chunk) { (*static_cast<Plain*>(context))(chunk); },
        const_cast<void*>(static_cast<const void*>(&body)));
}

// Of chunks that are each worth a thread.
template <typename Body>
void parallel(int64_t chunks, Body&& body) {
    parallel(chunks, std::numeric_limits<int64_t>::max(), body);
}

// Threads that work on a job, the caller among them.
int64_t pool_threads();

VT_EXPORT int64_t vt_threads();
// Jobs so far that several threads were called to: for tests.
VT_EXPORT int64_t vt_shared_jobs();
VT_EXPORT void vt_set_threads(int64_t threads);
