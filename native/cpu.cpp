// Selects the instruction set: the best that detect.h finds, until vt_isa_use selects another.
#include "cpu.h"

#include <atomic>

#include "detect.h"

namespace {

// Computed once, on first use; immutable afterwards.
struct Found {
    const char* reasons[kIsaCount];
    Isa best = kPortable;
    Found() {
        for (int isa = 0; isa < kIsaCount; isa++) {
            reasons[isa] = why_not(Isa(isa));
            if (!*reasons[isa]) best = Isa(isa);
        }
    }
};

const Found& found() {
    static const Found once;
    return once;
}

std::atomic<int>& current() {
    static std::atomic<int> isa{found().best};
    return isa;
}

}  // namespace

Isa current_isa() { return Isa(current().load(std::memory_order_relaxed)); }

int64_t vt_abi_version() { return kAbiVersion; }

int32_t vt_isa_available(int32_t isa) { return isa >= 0 && isa < kIsaCount && !*found().reasons[isa]; }

const char* vt_isa_reason(int32_t isa) {
    return isa >= 0 && isa < kIsaCount ? found().reasons[isa] : "there is no such instruction set";
}

int32_t vt_isa_current() { return current_isa(); }

int32_t vt_isa_use(int32_t isa) {
    if (!vt_isa_available(isa)) return 0;
    current().store(isa, std::memory_order_relaxed);
    return 1;
}
