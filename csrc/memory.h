// Memory in huge pages where the system gives them.
#pragma once
#include <stdint.h>

#include <new>

#include "smollm3.h"

constexpr int64_t HUGE_PAGE = 2 << 20;  // bytes

inline int64_t round_down(int64_t x, int64_t to) { return x / to * to; }
inline int64_t round_up(int64_t x, int64_t to) { return round_down(x + to - 1, to); }

struct HugeMemory {  // zeroed
    uint8_t* data = nullptr;
    int64_t size = 0;
    HugeMemory() = default;
    HugeMemory(const HugeMemory&) = delete;
    HugeMemory& operator=(const HugeMemory&) = delete;
    ~HugeMemory() { sm3_free(data, size); }
    void allocate(int64_t bytes) {
        data = static_cast<uint8_t*>(sm3_alloc(size = bytes));
        if (!data) throw std::bad_alloc();
    }
};
