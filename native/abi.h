// The C ABI of Vitrail's kernels: what all exported functions share. Each area declares its own functions in its own header.
//
// Plain C types, no exceptions across the ABI; the only global state is the thread pool and the selected instruction set.
// Pointers are to dense row-major memory that the caller keeps alive until the function returns; sizes are int64_t; the
// caller has checked shapes. A structure that is passed in is read by all threads and written by none.
#pragma once

#include <cstdint>

#if defined(_WIN32)
#define VT_EXPORT extern "C" __declspec(dllexport)
#else
#define VT_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// Incremented with every change of a signature, so that Python never calls a library built from other sources.
constexpr int64_t kAbiVersion = 6;

// Element types, as Python passes them.
enum DataType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kInt8 = 3 };

// Rows of a matrix that are interleaved in every panel layout: the NR of the kernels that read panels.
constexpr int64_t kPanelRows = 16;
