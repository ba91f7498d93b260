// Work that lies in memory in a row, on its way to the threads. Each goes through a stretch of its own in ever shorter
// runs, so that it reads one long stream; who is at its end helps the one with most left, from behind. Who does what
// never matters to a result.
#pragma once
#include <stdint.h>

#include <algorithm>
#include <atomic>
#include <vector>

class Shares {
  public:
    Shares(int64_t count, int threads, int64_t shortest) : left_(size_t(threads)), shortest_(shortest) {
        for (int64_t i = 0; i < threads; i++) left_[size_t(i)].range = range(count * i / threads, count * (i + 1) / threads);
    }

    // Gives thread `own` its next run, [begin, end); false when all is taken.
    bool next(int64_t own, int64_t* begin, int64_t* end) {
        for (;;) {
            size_t from = size_t(own);
            uint64_t seen = left_[from].range;
            if (size(seen) <= 0) seen = left_[from = fullest()].range;
            if (size(seen) <= 0) return false;
            const int64_t first = int64_t(seen >> 32), last = int64_t(uint32_t(seen));
            const int64_t run = std::min(last - first, std::max(shortest_, (last - first) / 2));
            const bool mine = from == size_t(own);
            *begin = mine ? first : last - run, *end = *begin + run;
            if (left_[from].range.compare_exchange_weak(seen, mine ? range(*end, last) : range(first, *begin))) return true;
        }
    }

  private:
    struct alignas(64) Share {  // a cache line each
        std::atomic<uint64_t> range{0};  // first in the upper half, end in the lower
    };
    static uint64_t range(int64_t first, int64_t last) { return uint64_t(first) << 32 | uint64_t(last); }
    static int64_t size(uint64_t range) { return int64_t(uint32_t(range)) - int64_t(range >> 32); }
    size_t fullest() const {
        size_t best = 0;
        for (size_t i = 1; i < left_.size(); i++)
            if (size(left_[i].range) > size(left_[best].range)) best = i;
        return best;
    }
    std::vector<Share> left_;
    const int64_t shortest_;
};
