// Moves weights out of a mapped file into huge pages, piece by piece, while the engine is in use.
#pragma once
#include <stdint.h>

#include <vector>

#include "memory.h"

class Settling {
  public:
    // Takes note of a matrix; descriptions that share their data move together.
    void add(Sm3Matrix* matrix);
    // Copies up to `budget` bytes of what lies in a file's pages and returns the bytes still to move. The caller
    // keeps the weights from being read meanwhile.
    int64_t move(int64_t budget);

  private:
    struct Weights {
        std::vector<Sm3Matrix*> users;
        const uint8_t* from;
        int64_t bytes, done;
        uint8_t* to;
    };
    void begin();
    std::vector<Weights> waiting_;
    HugeMemory memory_;  // all of them side by side, so that no huge page stays half empty
    int64_t left_ = 0;
    bool begun_ = false;
};
