// The thread pool. See pool.h.
#include "pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>

#if !defined(_WIN32)
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// How long a worker polls for the next job before it sleeps. Matrix products of one decoding step follow one another
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

// Owned by the caller's stack frame in Pool::run; shared by all workers until inside_ is 0 again.
struct Job {
    void (*body)(void*, int64_t);
    void* context;
    int64_t chunks, most;  // most: threads that may take part
    std::atomic<int64_t> next{0};

    void work() {
        for (int64_t chunk; (chunk = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) body(context, chunk);
    }
};

thread_local bool inside_job = false;

// One per process, never destroyed. All members are atomic or guarded by busy_ (the running job, workers_) or sleep_.
class Pool {
  public:
    explicit Pool(int64_t threads) : threads_(threads) {}

    void run(int64_t chunks, double work, void (*body)(void*, int64_t), void* context) {
        Job job{body, context, chunks, int64_t(std::min(double(threads()), work / kWorkPerThread))};
        // One job at a time: a second caller, or a nested call, runs its chunks on its own thread.
        if (chunks > 1 && !inside_job && job.most > 1 && busy_.try_lock()) {
            run_together(job);
            busy_.unlock();
        } else {
            const bool outer = inside_job;
            inside_job = true;
            job.work();
            inside_job = outer;
        }
    }

    int64_t shared_jobs() const { return shared_jobs_.load(std::memory_order_relaxed); }

    int64_t threads() const { return threads_.load(std::memory_order_relaxed); }

    // Waits for the running job. Must not be called from a chunk: it would deadlock.
    void set_threads(int64_t threads) {
        threads = threads < 1 ? 1 : threads > kMostThreads ? kMostThreads : threads;
        std::lock_guard<std::mutex> alone(busy_);
        {
            std::lock_guard<std::mutex> lock(sleep_);
            threads_.store(threads, std::memory_order_relaxed);
        }
        spare_.notify_all();
    }

    // In a forked child only the calling thread exists: no workers, and locks that no thread will ever release.
    void forget() { new (this) Pool(threads()); }

  private:
    void run_together(Job& job) {
        shared_jobs_.fetch_add(1, std::memory_order_relaxed);
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
        // No chunk is left to claim. A worker that incremented inside_ before this may still use the job; later ones see null.
        job_.store(nullptr);
        for (int tries = 0; inside_.load() != 0; tries++) {
            if (tries < 2000) {
                pause_briefly();
            } else {
                std::this_thread::yield();  // more threads than cores: let the worker run
            }
        }
    }

    void start_missing_workers() {
        while (workers_ < threads() - 1) {
            const int64_t index = workers_ + 1;
            try {
                std::thread([this, index] { serve(index); }).detach();
            } catch (...) {  // the system has no more threads: continue with those that exist
                threads_.store(index, std::memory_order_relaxed);
                return;
            }
            workers_ = index;
        }
    }

    void serve(int64_t index) {
        inside_job = true;
        for (uint64_t seen = 0;;) {
            await_epoch_after(seen, index);
            seen = epoch_.load();
            inside_.fetch_add(1);
            if (index < threads()) {
                Job* const job = job_.load();
                if (job && index < job->most) job->work();
            }
            inside_.fetch_sub(1);
        }
    }

    void await_epoch_after(uint64_t seen, int64_t index) {
        if (index < threads()) {
            const auto until = std::chrono::steady_clock::now() + kSpin;
            do {
                for (int i = 0; i < 64; i++) {
                    if (epoch_.load(std::memory_order_acquire) != seen) return;
                    pause_briefly();
                }
            } while (std::chrono::steady_clock::now() < until);
        }
        std::unique_lock<std::mutex> lock(sleep_);
        spare_.wait(lock, [&] { return index < threads(); });  // jobs don't wake surplus workers
        sleeping_.fetch_add(1);
        wake_.wait(lock, [&] { return epoch_.load() != seen; });
        sleeping_.fetch_sub(1);
    }

    // Each on its own cache line: workers poll one while the others are written.
    alignas(64) std::atomic<uint64_t> epoch_{0};
    alignas(64) std::atomic<Job*> job_{nullptr};
    alignas(64) std::atomic<int> inside_{0};
    alignas(64) std::atomic<int> sleeping_{0};
    alignas(64) std::mutex busy_;
    std::atomic<int64_t> threads_;
    std::atomic<int64_t> shared_jobs_{0};
    int64_t workers_ = 0;
    std::mutex sleep_;
    std::condition_variable wake_, spare_;
};

int64_t cores() {
    const unsigned found = std::thread::hardware_concurrency();
    return found ? int64_t(found) : 1;
}

// Never destroyed: detached workers may still read it while the process exits.
Pool& pool() {
    static Pool* const only = [] {
        Pool* made = new Pool(cores());
#if !defined(_WIN32)
        pthread_atfork(nullptr, nullptr, [] { pool().forget(); });
#endif
        return made;
    }();
    return *only;
}

}  // namespace

void run_chunks(int64_t chunks, double work, void (*body)(void*, int64_t), void* context) {
    pool().run(chunks, work, body, context);
}

int64_t vt_shared_jobs() { return pool().shared_jobs(); }

int64_t pool_threads() { return pool().threads(); }

int64_t vt_threads() { return pool_threads(); }

void vt_set_threads(int64_t threads) { pool().set_threads(threads); }
