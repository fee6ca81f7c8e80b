// The thread pool alone: every chunk once, whoever calls, however many threads. Says what failed and exits with 1.
#include "pool.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

namespace {

void expect(bool right, const char* what) {
    if (right) return;
    std::printf("%s\n", what);
    std::exit(1);
}

// A job of `chunks` chunks that each write their place; the sum proves that the writes are seen by the caller.
void once(int64_t chunks) {
    std::vector<int64_t> runs(size_t(chunks), 0);
    parallel(chunks, [&](int64_t chunk) { runs[size_t(chunk)] += chunk + 1; });
    for (int64_t chunk = 0; chunk < chunks; chunk++) expect(runs[size_t(chunk)] == chunk + 1, "a chunk did not run exactly once");
}

void every_chunk_once() {
    for (int64_t threads : {1, 2, 3, 8}) {
        vt_set_threads(threads);
        expect(vt_threads() == threads, "the number of threads was not kept");
        for (int repeat = 0; repeat < 300; repeat++) {
            for (int64_t chunks : {0, 1, 2, 3, 7, 64}) once(chunks);
        }
        once(20000);
    }
}

void nested_calls() {
    vt_set_threads(4);
    std::atomic<int64_t> total{0};
    for (int repeat = 0; repeat < 50; repeat++) {
        parallel(8, [&](int64_t) {
            const auto self = std::this_thread::get_id();
            parallel(16, [&](int64_t) {
                expect(std::this_thread::get_id() == self, "a nested call left its thread");
                total++;
            });
        });
    }
    expect(total == 50 * 8 * 16, "nested chunks were lost");
}

void two_callers_at_once() {
    vt_set_threads(3);
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 3; caller++) {
        callers.emplace_back([] {
            for (int repeat = 0; repeat < 500; repeat++) once(13);
        });
    }
    for (auto& caller : callers) caller.join();
}

void threads_change_between_and_beside_jobs() {
    std::atomic<bool> done{false};
    std::thread changer([&] {
        for (int64_t threads = 1; !done; threads = threads % 6 + 1) vt_set_threads(threads);
    });
    for (int repeat = 0; repeat < 1000; repeat++) once(17);
    done = true;
    changer.join();
    vt_set_threads(0);
    expect(vt_threads() == 1, "fewer than one thread");
    vt_set_threads(1 << 20);
    expect(vt_threads() == 256, "more threads than the most");
    vt_set_threads(2);
    once(100);
}

// Far more threads than cores: some of them never begin in time, and nobody waits for them.
void starved_workers() {
    vt_set_threads(64);
    for (int repeat = 0; repeat < 100; repeat++) once(128);
    vt_set_threads(2);
    for (int repeat = 0; repeat < 100; repeat++) once(128);
}

double cpu_seconds() {
    rusage use;
    getrusage(RUSAGE_SELF, &use);
    return double(use.ru_utime.tv_sec + use.ru_stime.tv_sec) + 1e-6 * double(use.ru_utime.tv_usec + use.ru_stime.tv_usec);
}

void idle_workers_sleep() {
    vt_set_threads(4);
    once(64);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const double before = cpu_seconds();
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    expect(cpu_seconds() - before < 0.05, "idle workers use the processor");
    once(64);  // and they wake up again
}

// The child has no workers and the parent's locks: it starts its own, with the same number of threads.
void fork_in_the_middle() {
    vt_set_threads(3);
    once(64);
    std::atomic<bool> done{false};
    std::thread busy([&] {
        while (!done) once(32);
    });
    for (int repeat = 0; repeat < 30; repeat++) {
        const pid_t child = fork();
        expect(child >= 0, "fork failed");
        if (child == 0) {
            alarm(20);
            if (vt_threads() != 3) _exit(2);
            std::atomic<int64_t> total{0};
            for (int job = 0; job < 20; job++) parallel(64, [&](int64_t chunk) { total += chunk; });
            _exit(total == 20 * 64 * 63 / 2 ? 0 : 1);
        }
        int status = 0;
        expect(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0, "a forked child failed");
    }
    done = true;
    busy.join();
    once(64);
}

}  // namespace

int main(int count, char** names) {
    const struct {
        const char* name;
        void (*test)();
    } tests[] = {
        {"once", every_chunk_once},
        {"nested", nested_calls},
        {"callers", two_callers_at_once},
        {"threads", threads_change_between_and_beside_jobs},
        {"starved", starved_workers},
        {"idle", idle_workers_sleep},
        {"fork", fork_in_the_middle},
    };
    for (const auto& one : tests) {
        if (count == 2 && !std::strcmp(names[1], one.name)) {
            one.test();
            return 0;
        }
    }
    std::printf("which test?\n");
    return 2;
}
