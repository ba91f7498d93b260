// The engine's parts: KV blocks, threads and scratch memory. engine.cpp takes a batch through the model, layer.cpp does
// what happens within a layer, border.cpp is the C interface. The weights belong to the caller.
#pragma once
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "settle.h"
#include "shares.h"
#include "threads.h"

constexpr int64_t SHORTEST = 4;  // panels of a run
constexpr std::align_val_t LINE{64};

struct Freed {
    void operator()(void* p) const { operator delete(p, LINE); }
};

// Grows, never shrinks; contents are not kept. Begins with a cache line, so that vectors that stand in it in a row never
// lie across two.
template <typename T>
struct Buffer {
    std::unique_ptr<T, Freed> data;
    size_t size = 0;
    T* get(int64_t count) {
        if (size_t(count) > size) {
            data.reset(), size = 0;
            data.reset(static_cast<T*>(operator new(size_t(count) * sizeof(T), LINE)));
            size = size_t(count);
        }
        return data.get();
    }
};

// One matrix's input: a token's row in the forms that the kinds of weights multiply.
struct Prepared {
    Buffer<int8_t> codes;
    Buffer<float> scales;
    Buffer<int32_t> sums, pairs;
    Buffer<uint16_t> bf16;
    Activations view{};
    void resize(int64_t rows, int64_t cols, const ActivationScheme& scheme) {
        const int64_t groups = rows * (cols / scheme.group) + PANEL;
        view = {codes.get(rows * cols + scheme.group), scales.get(groups), sums.get(groups), pairs.get(groups),
                bf16.get(rows * cols + 2), rows, cols, scheme};
    }
};

struct Use {
    const Sm3Matrix* matrix;
    float* out;
    int64_t stride;
    bool accumulate;
};

enum class Half { both, remember, ask };  // of attention: keys and values into the cache, queries out of it

struct Sm3Engine {
    Sm3Model model;
    std::vector<Sm3Layer> layers;
    const Kernels* kernels;
    ThreadPool pool;
    std::mutex busy;
    int32_t kv_bits, num_blocks;
    ActivationScheme scheme;
    bool any_bf16 = false, any_quantized = false;
    HugeMemory cache;
    Settling settling;
    Buffer<float> hidden, k, v, gated, cos, sin, partials;
    Buffer<float> rows;  // of a piece: its queries, then what they find
    Prepared input, middle;

    Sm3Engine(const Sm3Model& m, int32_t threads, const Kernels* kernels, int32_t kv_bits, int32_t num_blocks);
    int64_t head_bytes() const { return kv_head_bytes(kv_bits, model.head_dim); }
    int64_t layer_bytes() const { return head_bytes() * model.kv_heads; }
    int64_t block_bytes() const { return layer_bytes() * model.layers; }
    KvLayer kv(int32_t layer) {
        return {cache.data + layer * layer_bytes(), block_bytes(), head_bytes(), kv_bits, model.head_dim};
    }
    void prepare(const Prepared& to, int64_t tile, const float* x, int64_t stride, int64_t from, int64_t count);
    template <typename Work>
    void each_piece(const Activations& a, const Work& work);
    void prepare_normed(const float* h, int64_t tokens, const float* norm);
    void multiply(const Prepared& x, std::initializer_list<Use> uses);
    void embed(const Sm3Batch& batch, int64_t tokens);
    void place(const Sm3Batch& batch);
    void angles(int64_t tokens);
    void keep(const int32_t* tokens, int64_t count);
    int64_t splits_of(int64_t begin, int64_t end) const;
    void turn(const Sm3Layer& layer, int64_t token, int32_t heads, float* x);
    void append(const Sm3Batch& batch, int32_t layer, int64_t token, const float* key, const float* value);
    void attention(const Sm3Batch& batch, int32_t layer, int64_t begin, int64_t end, Half half);
    void answer(const Sm3Batch& batch, int32_t layer, int64_t begin, int64_t end, float* queries);
    void attend(const Sm3Batch& batch, int32_t layer, int64_t first, int64_t last, float* queries);
    void feed_forward(const Sm3Layer& layer, int64_t begin, int64_t end);
    void layer_step(const Sm3Batch& batch, int32_t layer, int64_t tokens, Half half);
    void logits(const Sm3Batch& batch);
    void forward(const Sm3Batch& batch);

    std::vector<int32_t> sequence_of, position_of;
};

// Throws std::invalid_argument where `w`, called `name`, is not `rows` x `cols` or of a layout that no kernel takes.
void check_matrix(const Sm3Matrix& w, int64_t rows, int64_t cols, const char* name);

// Turns columns of a tile's rows, `count` from `from` on, into what the weights multiply: x is the first row from that
// column on, the next one `stride` further. The buffers were sized by the caller.
void prepare_tile(const Kernels& kernels, const Activations& a, int64_t tile, const float* x, int64_t stride, int64_t from,
                  int64_t count, bool codes, bool bf16);

// Calls take(begin, end, thread) for runs of `count` panels, or of `shortest` at least, on all threads.
template <typename Take>
void share_out(ThreadPool& pool, int64_t count, int64_t shortest, const Take& take) {
    Shares shares(count, pool.size(), shortest);
    pool.run(pool.size(), [&](int64_t own) {
        for (int64_t begin, end; shares.next(own, &begin, &end);) take(begin, end, own);
    });
}

// Calls work(token) for each of `count` tokens. Neighbours, whose codes and keys share cache lines, stay with one thread.
template <typename Work>
void each_token(ThreadPool& pool, int64_t count, const Work& work) {
    share_out(pool, count, 1, [&](int64_t begin, int64_t end, int64_t) {
        for (; begin < end; begin++) work(begin);
    });
}
