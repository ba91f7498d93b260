// A pool of N - 1 workers that take task numbers from one counter. Workers spin briefly between tasks of
// one step and sleep when the engine is idle; the caller works along. Who runs a task never matters.
#pragma once
#include <stdint.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

class ThreadPool {
  public:
    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    // Calls task(i) for every i in [0, count) on all threads and returns when the last has ended.
    template <typename Task>
    void run(int64_t count, const Task& task) {
        if (count <= 0) return;
        if (workers_.empty() || count == 1) {
            for (int64_t i = 0; i < count; i++) task(i);
            return;
        }
        start(count, [](const void* t, int64_t i) { (*static_cast<const Task*>(t))(i); }, &task);
    }
    int size() const { return int(workers_.size()) + 1; }

  private:
    using Call = void (*)(const void*, int64_t);
    void start(int64_t count, Call call, const void* task);
    void work();
    void take();

    std::vector<std::thread> workers_;
    std::atomic<int64_t> next_{0};
    std::atomic<uint64_t> round_{0};
    std::atomic<int> busy_{0}, asleep_{0};
    std::atomic<bool> stop_{false};
    int64_t count_ = 0;
    Call call_ = nullptr;
    const void* task_ = nullptr;
    std::mutex mutex_;
    std::condition_variable wake_;
};
