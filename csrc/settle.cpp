#include "settle.h"

#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <new>

#include "kernels.h"

#if defined(__linux__)
#include <sys/mman.h>

namespace {

uintptr_t down(uintptr_t at) { return uintptr_t(round_down(int64_t(at), HUGE_PAGE)); }
uintptr_t up(uintptr_t at) { return uintptr_t(round_up(int64_t(at), HUGE_PAGE)); }

bool system_has_huge_pages() {
    FILE* file = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r");
    if (!file) return false;
    char text[128] = {};
    const bool read = fgets(text, sizeof text, file);
    fclose(file);
    return read && !strstr(text, "[never]");
}

// Puts a copy in huge pages in the place of [at, at + bytes), in one step for whoever reads there.
void replace(uintptr_t at, int64_t bytes, int protection) {
    void *place = reinterpret_cast<void*>(at), *copy = sm3_alloc(bytes);
    if (!copy) throw std::bad_alloc();
    memcpy(copy, place, size_t(bytes));
    if (mprotect(copy, size_t(bytes), protection) ||
        mremap(copy, size_t(bytes), size_t(bytes), MREMAP_MAYMOVE | MREMAP_FIXED, place) == MAP_FAILED) {
        sm3_free(copy, bytes);
        throw std::bad_alloc();
    }
}

}  // namespace

// The whole huge pages of this process's memory that are private maps of files.
std::vector<Settling::Range> Settling::mapped_files() {
    std::vector<Range> ranges;
    FILE* maps = system_has_huge_pages() ? fopen("/proc/self/maps", "r") : nullptr;
    if (!maps) return ranges;
    char line[4096 + 128];
    while (fgets(line, sizeof line, maps)) {
        unsigned long begin, end, inode;
        char access[8];
        if (sscanf(line, "%lx-%lx %7s %*x %*s %lu", &begin, &end, access, &inode) != 4 || !inode || access[3] != 'p') continue;
        const int protection = (access[0] == 'r' ? PROT_READ : 0) | (access[1] == 'w' ? PROT_WRITE : 0);
        if (access[0] == 'r' && access[2] != 'x' && up(begin) < down(end)) ranges.push_back({up(begin), down(end), protection});
    }
    fclose(maps);
    return ranges;
}

// Finds the huge pages' worth of files that weights lie in, neighbours together.
void Settling::begin() {
    begun_ = true;
    std::sort(weights_.begin(), weights_.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
    for (const Range& file : mapped_files()) {
        uintptr_t done = file.begin;
        for (const Range& weights : weights_) {
            const uintptr_t begin = std::max(done, down(weights.begin)), end = std::min(file.end, up(weights.end));
            if (begin >= end) continue;
            if (!waiting_.empty() && waiting_.back().end == begin) waiting_.back().end = end;
            else waiting_.push_back({begin, end, file.protection});
            left_ += int64_t(end - begin), done = end;
        }
    }
    weights_.clear();
}

int64_t Settling::move(int64_t budget) {
    if (!begun_) begin();
    while (budget > 0 && !waiting_.empty()) {
        Range& range = waiting_.back();
        const int64_t bytes = std::min(round_up(budget, HUGE_PAGE), int64_t(range.end - range.begin));
        replace(range.begin, bytes, range.protection);
        range.begin += uintptr_t(bytes), left_ -= bytes, budget -= bytes;
        if (range.begin == range.end) waiting_.pop_back();
    }
    return left_;
}

#else

std::vector<Settling::Range> Settling::mapped_files() { return {}; }
void Settling::begin() { begun_ = true; }
int64_t Settling::move(int64_t) { return 0; }

#endif

void Settling::add(const void* data, int64_t bytes) {
    weights_.push_back({uintptr_t(data), uintptr_t(data) + uintptr_t(bytes), 0});
}
