// Zeroed memory in huge pages where the system gives them.
#pragma once
#include <stdint.h>

#include <new>

#include "smollm3.h"

struct HugeMemory {
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
