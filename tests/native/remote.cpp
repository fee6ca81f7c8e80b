// Runs in the emulator: calls functions of a library for another process, whose memory it sees at the same addresses.
//
//   remote LIBRARY PID     calls come on standard input, answers go to standard output
//
// A pointer in a call is an address of the other process. Touching it is a fault here; the page is then copied from
// there and the instruction repeated. After the call, bytes that it changed are written back. So nobody has to know how
// much memory lies behind a pointer, and a kernel that reads outside of what exists over there ends this process.
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr uint64_t kPage = 4096;
constexpr int kMostPages = 1 << 18;  // 1 GiB a call
constexpr uint64_t kPlaces = 1 << 19;

struct Page {
    uint64_t address;
    uint64_t* place;  // in the table `here`
    unsigned char* before;
};

int memory = -1;  // of the other process
Page* pages = nullptr;
uint64_t* here = nullptr;  // the same pages' addresses, to be found by address
std::atomic<int> page_count{0};
std::atomic_flag busy = ATOMIC_FLAG_INIT;

void* fresh(uint64_t bytes) {
    void* got = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return got == MAP_FAILED ? nullptr : got;
}

// The place of an address in a table of those that are here, or the free one where it belongs.
uint64_t* place_of(uint64_t address) {
    uint64_t at = address / kPage * 0x9e3779b97f4a7c15u >> 45;
    while (here[at] != 0 && here[at] != address) at = (at + 1) % kPlaces;
    return here + at;
}

bool fetch(uint64_t address) {
    uint64_t* const place = place_of(address);
    if (*place == address) return true;  // another thread was first, maybe many pages ago
    if (page_count.load() == kMostPages) return false;
    auto* copy = static_cast<unsigned char*>(fresh(2 * kPage));
    if (!copy || pread(memory, copy, kPage, off_t(address)) != ssize_t(kPage)) return false;
    std::memcpy(copy + kPage, copy, kPage);
    // Moved into place whole: no thread sees a page that is not yet filled.
    if (mremap(copy, kPage, kPage, MREMAP_MAYMOVE | MREMAP_FIXED, reinterpret_cast<void*>(address)) == MAP_FAILED) return false;
    *place = address;
    pages[page_count.load()] = {address, place, copy + kPage};
    page_count.fetch_add(1);
    return true;
}

void on_fault(int, siginfo_t* info, void*) {
    while (busy.test_and_set()) {
    }
    const bool fetched = fetch(reinterpret_cast<uint64_t>(info->si_addr) & ~(kPage - 1));
    busy.clear();
    if (!fetched) signal(SIGSEGV, SIG_DFL);  // a true fault: it happens again and ends the process
}

void give_back() {
    for (int i = 0; i < page_count.load(); i++) {
        const auto* now = reinterpret_cast<const unsigned char*>(pages[i].address);
        const unsigned char* before = pages[i].before;
        for (uint64_t at = 0; at < kPage;) {
            if (now[at] == before[at]) {
                at++;
                continue;
            }
            uint64_t end = at + 1;
            while (end < kPage && now[end] != before[end]) end++;
            if (pwrite(memory, now + at, end - at, off_t(pages[i].address + at)) != ssize_t(end - at)) std::exit(3);
            at = end;
        }
        munmap(reinterpret_cast<void*>(pages[i].address), kPage);
        munmap(pages[i].before, kPage);
    }
    for (int i = 0; i < page_count.load(); i++) *pages[i].place = 0;
    page_count.store(0);
}

void read_all(void* to, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        const ssize_t got = read(0, static_cast<char*>(to) + done, bytes - done);
        if (got <= 0) std::exit(0);
        done += size_t(got);
    }
}

void write_all(const void* from, size_t bytes) {
    if (write(1, from, bytes) != ssize_t(bytes)) std::exit(4);
}

// The procedure call standard passes 8 integers and 8 floats in registers, whatever their order, then integers on the stack.
using Function = uint64_t (*)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, double, double,
                              double, double, double, double, double, double, uint64_t, uint64_t, uint64_t, uint64_t,
                              uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                              uint64_t, uint64_t, uint64_t);

struct Call {
    char name[64];
    uint64_t wants_text;
    uint64_t integers[24];
    double floats[8];
};

void serve(void* library) {
    for (;;) {
        Call call;
        read_all(&call, sizeof call);
        char text[256] = {};
        uint64_t answer[2] = {0, 0};  // found, value
        if (void* symbol = dlsym(library, call.name)) {
            const uint64_t* i = call.integers;
            const double* f = call.floats;
            answer[0] = 1;
            answer[1] = reinterpret_cast<Function>(symbol)(
                i[0], i[1], i[2], i[3], i[4], i[5], i[6], i[7], f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], i[8], i[9], i[10],
                i[11], i[12], i[13], i[14], i[15], i[16], i[17], i[18], i[19], i[20], i[21], i[22], i[23]);
            if (call.wants_text) std::strncpy(text, reinterpret_cast<const char*>(answer[1]), sizeof text - 1);
            give_back();
        }
        write_all(answer, sizeof answer);
        write_all(text, sizeof text);
    }
}

}  // namespace

int main(int count, char** words) {
    if (count != 3) return 2;
    void* library = dlopen(words[1], RTLD_NOW);
    if (!library) {
        std::fprintf(stderr, "%s\n", dlerror());
        return 2;
    }
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%s/mem", words[2]);
    memory = open(path, O_RDWR);
    pages = static_cast<Page*>(fresh(kMostPages * sizeof(Page)));
    here = static_cast<uint64_t*>(fresh(kPlaces * sizeof(uint64_t)));
    if (memory < 0 || !pages || !here) {
        std::fprintf(stderr, "%s cannot be opened\n", path);
        return 2;
    }
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, nullptr);
    write_all("ready", 5);
    serve(library);
}
