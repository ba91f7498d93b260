#include "settle.h"

#include <stdio.h>
#include <string.h>

#include <algorithm>

#include "kernels.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace {

struct Range {
    uintptr_t begin, end;
};

// The parts of this process's memory that are private maps of files: what is there can be read again.
std::vector<Range> mapped_files() {
    std::vector<Range> ranges;
#if defined(__linux__)
    FILE* maps = fopen("/proc/self/maps", "r");
    if (!maps) return ranges;
    char line[4096 + 128];
    while (fgets(line, sizeof line, maps)) {
        unsigned long begin, end, inode;
        char access[8];
        if (sscanf(line, "%lx-%lx %7s %*x %*s %lu", &begin, &end, access, &inode) == 4 && inode && access[3] == 'p')
            ranges.push_back({begin, end});
    }
    fclose(maps);
#endif
    return ranges;
}

// Lets the pages wholly inside of [from, from + bytes) go; the file still has them.
void release(const uint8_t* from, int64_t bytes) {
#if defined(__linux__)
    const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
    const uintptr_t begin = (uintptr_t(from) + page - 1) / page * page, end = (uintptr_t(from) + uintptr_t(bytes)) / page * page;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
#else
    (void)from, (void)bytes;
#endif
}

}  // namespace

void Settling::add(Sm3Matrix* matrix) {
    if (matrix->kind == SM3_BF16) return;  // used in place: its owner may change it
    const uint8_t* data = static_cast<const uint8_t*>(matrix->data);
    for (Weights& weights : waiting_)
        if (weights.from == data) {
            weights.users.push_back(matrix);
            return;
        }
    waiting_.push_back({{matrix}, data, panel_count(*matrix) * panel_bytes(*matrix), 0, nullptr});
}

// Keeps what lies in a file, and gives each its place.
void Settling::begin() {
    begun_ = true;
    const std::vector<Range> files = mapped_files();
    auto in_memory = [&](const Weights& weights) {
        const uintptr_t begin = uintptr_t(weights.from), end = begin + uintptr_t(weights.bytes);
        return std::none_of(files.begin(), files.end(),
                            [&](const Range& file) { return file.begin <= begin && end <= file.end; });
    };
    waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(), in_memory), waiting_.end());
    int64_t size = 0;
    for (const Weights& weights : waiting_) size += round_up(weights.bytes, 64), left_ += weights.bytes;
    if (size) memory_.allocate(size);
    uint8_t* place = memory_.data;
    for (Weights& weights : waiting_) weights.to = place, place += round_up(weights.bytes, 64);
}

int64_t Settling::move(int64_t budget) {
    if (!begun_) begin();
    while (budget > 0 && !waiting_.empty()) {
        Weights& weights = waiting_.back();
        const int64_t bytes = std::min(budget, weights.bytes - weights.done);
        memcpy(weights.to + weights.done, weights.from + weights.done, size_t(bytes));
        release(weights.from + weights.done, bytes);  // a step that needs them once more finds them in the file
        weights.done += bytes, left_ -= bytes, budget -= bytes;
        if (weights.done < weights.bytes) break;
        for (Sm3Matrix* user : weights.users) user->data = weights.to;
        waiting_.pop_back();
    }
    return left_;
}
