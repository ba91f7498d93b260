// Moves weights out of a mapped file into huge pages, in place and piece by piece, while the engine is in use.
#pragma once
#include <stdint.h>

#include <vector>

class Settling {
  public:
    // Takes note of weights that the engine reads.
    void add(const void* data, int64_t bytes);
    // Moves the next pieces, about `budget` bytes, and returns the bytes still to move: addresses and contents stay, only
    // the pages behind them are others. The caller keeps the weights from being written meanwhile.
    int64_t move(int64_t budget);

  private:
    struct Range {
        uintptr_t begin, end;
        int protection;
    };
    static std::vector<Range> mapped_files();
    void begin();
    std::vector<Range> weights_, waiting_;
    int64_t left_ = 0;
    bool begun_ = false;
};
