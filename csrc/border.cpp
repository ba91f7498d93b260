// The C interface to the engine: exceptions become error codes.
#include <string.h>

#include <algorithm>
#include <new>
#include <stdexcept>
#include <string>

#include "engine.h"

static thread_local std::string last_error;

template <typename Work>
static int32_t guarded(const Work& work) {
    try {
        work();
        return 0;
    } catch (const std::bad_alloc&) {
        last_error = "out of memory";
    } catch (const std::exception& error) {
        last_error = error.what();
    }
    return -1;
}

SM3_API const char* sm3_error(void) { return last_error.c_str(); }
SM3_API int32_t sm3_abi_version(void) { return 4; }
SM3_API int32_t sm3_block_size(void) { return KV_BLOCK; }
SM3_API int64_t sm3_block_bytes(const Sm3Engine* engine) { return engine->block_bytes(); }

SM3_API Sm3Engine* sm3_create(const Sm3Model* model, int32_t threads, int32_t isa, int32_t kv_bits, int32_t num_blocks) {
    Sm3Engine* engine = nullptr;
    guarded([&] {
        const Kernels* kernels = find_kernels(isa);
        if (!kernels) throw std::invalid_argument("this machine or this build lacks the instruction set asked for");
        if (threads < 1 || threads > 1024) throw std::invalid_argument("threads must lie between 1 and 1024");
        if (kv_bits != 16 && kv_bits != 8) throw std::invalid_argument("kv_bits must be 16 or 8");
        if (num_blocks < 1) throw std::invalid_argument("the cache needs at least one block");
        engine = new Sm3Engine(*model, threads, kernels, kv_bits, num_blocks);
    });
    return engine;
}

SM3_API void sm3_destroy(Sm3Engine* engine) { delete engine; }

SM3_API int32_t sm3_forward(Sm3Engine* engine, const Sm3Batch* batch) {
    return guarded([&] {
        std::lock_guard<std::mutex> lock(engine->busy);
        engine->forward(*batch);
    });
}

SM3_API int32_t sm3_copy_block(Sm3Engine* engine, int32_t from, int32_t to) {
    return guarded([&] {
        std::lock_guard<std::mutex> lock(engine->busy);
        if (std::min(from, to) < 0 || std::max(from, to) >= engine->num_blocks)
            throw std::invalid_argument("no such block");
        memcpy(engine->cache.data + to * engine->block_bytes(), engine->cache.data + from * engine->block_bytes(),
               size_t(engine->block_bytes()));
    });
}

SM3_API void* sm3_block_data(Sm3Engine* engine, int32_t block) {
    return block < 0 || block >= engine->num_blocks ? nullptr : engine->cache.data + block * engine->block_bytes();
}

SM3_API int64_t sm3_settle(Sm3Engine* engine, int64_t budget) {
    int64_t left = -1;
    guarded([&] {
        std::lock_guard<std::mutex> lock(engine->busy);
        left = engine->settling.move(budget);
    });
    return left;
}

SM3_API int32_t sm3_matmul(const Sm3Matrix* matrix, const float* x, int64_t n, float* out, int32_t threads, int32_t isa) {
    return guarded([&] {
        const Kernels* kernels = find_kernels(isa);
        if (!kernels) throw std::invalid_argument("this machine or this build lacks the instruction set asked for");
        const Sm3Matrix& w = *matrix;
        check_matrix(w, w.rows, w.cols, "the matrix");
        ThreadPool pool(threads);
        Prepared input;
        ActivationScheme scheme;
        scheme.suit(w);
        input.resize(n, w.cols, scheme);
        const int64_t tiles = tile_count(n, kernels->max_tile);
        pool.run(tiles, [&](int64_t i) {
            prepare_tile(*kernels, input.view, i, x + tile_begin(n, tiles, i) * w.cols, w.cols, 0, w.cols, w.kind != SM3_BF16,
                         w.kind == SM3_BF16);
        });
        share_out(pool, panel_count(w), SHORTEST, [&](int64_t begin, int64_t end, int64_t) {
            kernels->matmul(w, input.view, begin, end, out, w.rows, false);
        });
    });
}
