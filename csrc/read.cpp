// Reads memory as fast as it comes and does nothing else: what a decode step, which reads every weight once,
// can be measured against. Plain loads are enough, a core waits for memory with any width.
#include "smollm3.h"
#include "threads.h"

constexpr int64_t STRETCH = 4 << 20;  // bytes of one task
constexpr int64_t LINE = 8, AHEAD = 448 / 8;  // in words: a cache line, and how far ahead it is asked for

static uint64_t read_words(const uint64_t* words, int64_t count) {
    uint64_t sums[4 * LINE] = {};
    int64_t i = 0;
    for (; i + 4 * LINE <= count; i += 4 * LINE) {
        for (int64_t j = 0; j < 4 * LINE; j += LINE) __builtin_prefetch(words + i + AHEAD + j);
        for (int64_t j = 0; j < 4 * LINE; j++) sums[j] ^= words[i + j];
    }
    for (; i < count; i++) sums[0] ^= words[i];
    for (int64_t j = 1; j < 4 * LINE; j++) sums[0] ^= sums[j];
    return sums[0];
}

SM3_API uint64_t sm3_read(const void* data, int64_t size, int32_t threads) {
    const auto* bytes = static_cast<const char*>(data);
    std::atomic<uint64_t> all{0};
    ThreadPool pool(threads < 1 ? 1 : threads);
    pool.run((size + STRETCH - 1) / STRETCH, [&](int64_t task) {
        const int64_t from = task * STRETCH, left = size - from;
        all ^= read_words(reinterpret_cast<const uint64_t*>(bytes + from), (left < STRETCH ? left : STRETCH) / 8);
    });
    return all;
}
