// The threads that kernels run on: chunks of one job, claimed through one counter.
#include "pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// How long a worker looks for the next job before it sleeps. Matrix products of one decoding step follow one another
// within a few microseconds; waking a sleeping thread costs about fifty.
constexpr auto kSpin = std::chrono::microseconds(100);
constexpr int64_t kMostThreads = 256;

void pause_briefly() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

struct Job {
    void (*body)(void*, int64_t);
    void* context;
    int64_t chunks;
    std::atomic<int64_t> next{0};

    void work() {
        for (int64_t chunk; (chunk = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) body(context, chunk);
    }
};

thread_local bool inside_job = false;

class Pool {
  public:
    void run(int64_t chunks, void (*body)(void*, int64_t), void* context) {
        Job job{body, context, chunks};
        // One job at a time: a second caller, or a chunk that calls back, does its work alone.
        if (chunks > 1 && !inside_job && threads() > 1 && busy_.try_lock()) {
            run_together(job);
            busy_.unlock();
        } else {
            const bool outer = inside_job;
            inside_job = true;
            job.work();
            inside_job = outer;
        }
    }

    int64_t threads() const { return threads_.load(std::memory_order_relaxed); }

    void set_threads(int64_t threads) {
        threads = threads < 1 ? 1 : threads > kMostThreads ? kMostThreads : threads;
        std::lock_guard<std::mutex> alone(busy_);
        threads_.store(threads, std::memory_order_relaxed);
    }

    // In a child process only the forking thread lives on. The old workers' handles and locks are left behind.
    void forget() { new (this) Pool(); }

  private:
    void run_together(Job& job) {
        start_missing_workers();
        job_.store(&job);
        epoch_.fetch_add(1);
        if (sleeping_.load() > 0) {
            { std::lock_guard<std::mutex> lock(sleep_); }
            wake_.notify_all();
        }
        inside_job = true;
        job.work();
        inside_job = false;
        // No chunk is left to claim. A worker that announced itself before this may still hold the job; later ones see none.
        job_.store(nullptr);
        for (int tries = 0; inside_.load() != 0; tries++) {
            if (tries < 2000) {
                pause_briefly();
            } else {
                std::this_thread::yield();  // more threads than cores: let the worker finish
            }
        }
    }

    void start_missing_workers() {
        while (int64_t(workers_.size()) < threads() - 1) {
            const int64_t index = int64_t(workers_.size()) + 1;
            try {
                workers_.emplace_back([this, index] { serve(index); });
                workers_.back().detach();
            } catch (...) {  // no more threads to be had: the caller does without
                threads_.store(index, std::memory_order_relaxed);
                return;
            }
        }
    }

    void serve(int64_t index) {
        inside_job = true;
        uint64_t seen = 0;
        for (;;) {
            await_epoch_after(seen);
            seen = epoch_.load();
            inside_.fetch_add(1);
            if (index < threads()) {
                if (Job* job = job_.load()) job->work();
            }
            inside_.fetch_sub(1);
        }
    }

    void await_epoch_after(uint64_t seen) {
        const auto until = std::chrono::steady_clock::now() + kSpin;
        do {
            for (int i = 0; i < 64; i++) {
                if (epoch_.load(std::memory_order_acquire) != seen) return;
                pause_briefly();
            }
        } while (std::chrono::steady_clock::now() < until);
        std::unique_lock<std::mutex> lock(sleep_);
        sleeping_.fetch_add(1);
        wake_.wait(lock, [&] { return epoch_.load() != seen; });
        sleeping_.fetch_sub(1);
    }

    std::mutex busy_;
    std::atomic<int64_t> threads_{int64_t(std::thread::hardware_concurrency() ? std::thread::hardware_concurrency() : 1)};
    std::vector<std::thread> workers_;
    std::atomic<Job*> job_{nullptr};
    std::atomic<uint64_t> epoch_{0};
    std::atomic<int> inside_{0}, sleeping_{0};
    std::mutex sleep_;
    std::condition_variable wake_;
};

// Never destroyed: detached workers may still look at it while the process ends.
Pool& pool() {
    static Pool* const only = [] {
        Pool* made = new Pool();
#if !defined(_WIN32)
        pthread_atfork(nullptr, nullptr, [] { pool().forget(); });
#endif
        return made;
    }();
    return *only;
}

}  // namespace

void run_chunks(int64_t chunks, void (*body)(void*, int64_t), void* context) { pool().run(chunks, body, context); }

int64_t pool_threads() { return pool().threads(); }

int64_t vt_threads() { return pool_threads(); }

void vt_set_threads(int64_t threads) { pool().set_threads(threads); }
