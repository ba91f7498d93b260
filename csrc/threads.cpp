#include "threads.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
static inline void relax() { _mm_pause(); }
#elif defined(__aarch64__)
static inline void relax() { __asm__ __volatile__("yield"); }
#else
static inline void relax() {}
#endif

constexpr int SPINS = 4000;  // some tens of microseconds: longer than the gap between two tasks of a step

ThreadPool::ThreadPool(int threads) {
    for (int i = 1; i < threads; i++) workers_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
        round_++;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
}

void ThreadPool::take() {
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) call_(task_, i);
}

void ThreadPool::start(int64_t count, Call call, const void* task) {
    count_ = count, call_ = call, task_ = task;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(int(workers_.size()), std::memory_order_relaxed);
    round_.fetch_add(1);  // publishes the task; sequentially consistent with asleep_
    if (asleep_.load() > 0) {
        std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
    take();
    for (int spins = 0; busy_.load(std::memory_order_acquire) > 0; spins++) {
        if (spins < SPINS) relax();
        else std::this_thread::yield();
    }
}

void ThreadPool::work() {
    uint64_t seen = 0;
    for (;;) {
        int spins = 0;
        while (round_.load(std::memory_order_acquire) == seen && spins++ < SPINS) relax();
        if (round_.load() == seen) {
            std::unique_lock<std::mutex> lock(mutex_);
            asleep_++;
            wake_.wait(lock, [&] { return round_.load() != seen; });
            asleep_--;
        }
        if (stop_) return;
        seen++;
        take();
        busy_.fetch_sub(1, std::memory_order_release);
    }
}
