// One forward step of the whole model over a mixed batch: rows of several sequences, some prefilling, some
// decoding. Holds the KV blocks, the threads and the scratch memory; the weights belong to the caller.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "kernels.h"
#include "memory.h"
#include "settle.h"
#include "shares.h"
#include "threads.h"

static thread_local std::string last_error;

namespace {

constexpr int64_t SHORTEST = 4;          // panels of a run
constexpr int64_t TASKS_PER_THREAD = 4;  // of attention
constexpr int64_t PIECE = 192;           // tokens that go through a layer together: bounds the scratch memory
constexpr int64_t PARTIAL_BUDGET = 1 << 20;  // floats of attention partials held at a time
constexpr int64_t UNIT = 64;             // columns of gate and up that are taken together: whole groups, whole panels
constexpr int64_t NEAR_FLOATS = 32 << 10;    // of gate and up that a thread holds, if a unit is not more

template <typename T>
struct Buffer {  // grows, never shrinks; contents are not kept
    std::unique_ptr<T[]> data;
    size_t size = 0;
    T* get(int64_t count) {
        if (size_t(count) > size) data.reset(new T[size = size_t(count)]);
        return data.get();
    }
};

// One matrix's input: a token's row in the forms that the kinds of weights multiply.
struct Prepared {
    Buffer<int8_t> codes;
    Buffer<float> scales;
    Buffer<int32_t> sums;
    Buffer<uint16_t> bf16;
    Activations view{};
    void resize(int64_t rows, int64_t cols, int32_t group) {
        const int64_t groups = rows * (cols / group) + PANEL;
        view = {codes.get(rows * cols), scales.get(groups), sums.get(groups), bf16.get(rows * cols + 2), rows, cols, group};
    }
};

struct Use {
    const Sm3Matrix* matrix;
    float* out;
    int64_t stride;
    bool accumulate;
};

}  // namespace

struct Sm3Engine {
    Sm3Model model;
    std::vector<Sm3Layer> layers;
    const Kernels* kernels;
    ThreadPool pool;
    std::mutex busy;
    int32_t kv_bits, num_blocks, group;
    bool any_bf16 = false, any_quantized = false;
    HugeMemory cache;
    Settling settling;
    Buffer<float> hidden, rows, k, v, gated, cos, sin, partials;  // rows: normed ones, then queries, then what they found
    Prepared input, middle;

    Sm3Engine(const Sm3Model& m, int32_t threads, const Kernels* kernels, int32_t kv_bits, int32_t num_blocks);
    int64_t head_bytes() const { return kv_head_bytes(kv_bits, model.head_dim); }
    int64_t layer_bytes() const { return head_bytes() * model.kv_heads; }
    int64_t block_bytes() const { return layer_bytes() * model.layers; }
    KvLayer kv(int32_t layer) {
        return {cache.data + layer * layer_bytes(), block_bytes(), head_bytes(), kv_bits, model.head_dim};
    }
    void prepare(const Prepared& to, int64_t row, const float* x, int64_t from, int64_t count);
    void prepare_normed(const float* h, int64_t tokens, const float* norm);
    void multiply(const Prepared& x, std::initializer_list<Use> uses);
    void embed(const Sm3Batch& batch, int64_t tokens);
    void angles(const Sm3Batch& batch, int64_t tokens);
    void attention(const Sm3Batch& batch, int32_t layer, int64_t begin, int64_t end);
    void attend(const Sm3Batch& batch, int32_t layer, int64_t first, int64_t last, float* queries);
    void feed_forward(const Sm3Layer& layer, int64_t begin, int64_t end);
    void logits(const Sm3Batch& batch);
    void forward(const Sm3Batch& batch);

    std::vector<int32_t> sequence_of, position_of;
};

static void check_matrix(const Sm3Matrix& w, int64_t rows, int64_t cols, const char* name) {
    if (w.rows != rows || w.cols != cols)
        throw std::invalid_argument(std::string(name) + " is " + std::to_string(w.rows) + " x " + std::to_string(w.cols) +
                                    ", expected " + std::to_string(rows) + " x " + std::to_string(cols));
    if (w.kind == SM3_BF16 && w.cols % 32)
        throw std::invalid_argument(std::string(name) + " has " + std::to_string(cols) + " columns, not a multiple of 32");
    if (w.kind != SM3_BF16 && sm3_packed_size(&w) < 0)
        throw std::invalid_argument(std::string(name) + " has a group of " + std::to_string(w.group) +
                                    " that does not divide its " + std::to_string(cols) + " columns");
}

Sm3Engine::Sm3Engine(const Sm3Model& m, int32_t threads, const Kernels* kernels, int32_t kv_bits, int32_t num_blocks)
    : model(m), layers(m.layer, m.layer + m.layers), kernels(kernels), pool(threads), kv_bits(kv_bits),
      num_blocks(num_blocks), group(64) {
    model.layer = layers.data();
    const int64_t heads = int64_t(m.heads) * m.head_dim, kv_heads = int64_t(m.kv_heads) * m.head_dim;
    if (m.head_dim % PANEL || m.hidden % 32 || m.intermediate % 32 || heads % 32 || m.heads % m.kv_heads)
        throw std::invalid_argument("head_dim must divide by 16, hidden and intermediate sizes by 32");
    auto look = [&](const Sm3Matrix& w, int64_t rows, int64_t cols, const char* name) {
        check_matrix(w, rows, cols, name);
        (w.kind == SM3_BF16 ? any_bf16 : any_quantized) = true;
        if (cols % 64 || (w.kind != SM3_BF16 && w.group % 64)) group = 32;
    };
    for (const Sm3Layer& l : layers) {
        look(l.q, heads, m.hidden, "q_proj"), look(l.k, kv_heads, m.hidden, "k_proj");
        look(l.v, kv_heads, m.hidden, "v_proj"), look(l.o, m.hidden, heads, "o_proj");
        look(l.gate, m.intermediate, m.hidden, "gate_proj"), look(l.up, m.intermediate, m.hidden, "up_proj");
        look(l.down, m.hidden, m.intermediate, "down_proj");
    }
    look(m.head, m.vocab, m.hidden, "lm_head");
    check_matrix(m.embedding, m.vocab, m.hidden, "embed_tokens");
    cache.allocate(block_bytes() * num_blocks);
    for (Sm3Layer& l : layers)
        for (Sm3Matrix* w : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down}) settling.add(w);
    settling.add(&model.embedding), settling.add(&model.head);
}

// Turns columns of one row, `count` from `from` on, into what the weights multiply. The buffers were sized by the caller.
static void prepare_columns(const Kernels& kernels, const Activations& a, int64_t row, const float* x, int64_t from,
                            int64_t count, bool codes, bool bf16) {
    const int64_t tiles = tile_count(a.rows, kernels.max_tile), tile = tile_of(a.rows, tiles, row);
    const int64_t first = tile_begin(a.rows, tiles, tile), size = tile_begin(a.rows, tiles, tile + 1) - first;
    if (codes) {
        const int64_t at = first * (a.cols / a.group) + from / a.group * size;
        kernels.quantize(x, count, a.group, size, row - first, (int8_t*)a.codes + first * a.cols + from * size,
                         (float*)a.scales + at, (int32_t*)a.sums + at);
    }
    if (bf16) kernels.to_bf16(x, from, count, a.cols, size, row - first, (uint16_t*)a.bf16 + first * a.cols);
}

void Sm3Engine::prepare(const Prepared& to, int64_t row, const float* x, int64_t from, int64_t count) {
    prepare_columns(*kernels, to.view, row, x, from, count, any_quantized, any_bf16);
}

// The rows of h, normed and prepared as `input`.
void Sm3Engine::prepare_normed(const float* h, int64_t tokens, const float* norm) {
    const int64_t size = model.hidden;
    float* x = rows.get(tokens * size);
    input.resize(tokens, size, group);
    pool.run(tokens, [&](int64_t t) {
        kernels->rms_norm(h + t * size, norm, size, model.norm_eps, x + t * size);
        prepare(input, t, x + t * size, 0, size);
    });
}

// Calls take(begin, end, thread) for runs of `count` panels, or of `shortest` at least, on all threads.
template <typename Take>
static void share_out(ThreadPool& pool, int64_t count, int64_t shortest, const Take& take) {
    Shares shares(count, pool.size(), shortest);
    pool.run(pool.size(), [&](int64_t own) {
        for (int64_t begin, end; shares.next(own, &begin, &end);) take(begin, end, own);
    });
}

// Products of prepared rows with several matrices in one go, their panels shared out among the threads.
void Sm3Engine::multiply(const Prepared& x, std::initializer_list<Use> uses) {
    int64_t all = 0;
    for (const Use& use : uses) all += panel_count(*use.matrix);
    share_out(pool, all, SHORTEST, [&](int64_t begin, int64_t end, int64_t) {
        for (const Use& use : uses) {
            const int64_t panels = panel_count(*use.matrix), from = std::max<int64_t>(0, begin), to = std::min(panels, end);
            if (from < to) kernels->matmul(*use.matrix, x.view, from, to, use.out, use.stride, use.accumulate);
            begin -= panels, end -= panels;
        }
    });
}

void Sm3Engine::embed(const Sm3Batch& batch, int64_t tokens) {
    float* h = hidden.get(tokens * model.hidden);
    pool.run(tokens, [&](int64_t t) {
        sm3_unpack_rows(&model.embedding, batch.token_ids[t], 1, h + t * model.hidden);
    });
}

// cos and sin of every token's position, in float as the reference computes them.
void Sm3Engine::angles(const Sm3Batch& batch, int64_t tokens) {
    const int64_t half = model.head_dim / 2;
    float *c = cos.get(tokens * half), *s = sin.get(tokens * half);
    sequence_of.resize(size_t(tokens)), position_of.resize(size_t(tokens));
    for (int32_t i = 0; i < batch.sequences; i++)
        for (int32_t t = batch.offsets[i]; t < batch.offsets[i + 1]; t++) {
            sequence_of[size_t(t)] = i;
            position_of[size_t(t)] = batch.starts[i] + t - batch.offsets[i];
        }
    pool.run(tokens, [&](int64_t t) {
        for (int64_t i = 0; i < half; i++) {
            const float angle = float(position_of[size_t(t)]) * model.inv_freq[i];
            c[t * half + i] = cosf(angle) * model.rope_scale;
            s[t * half + i] = sinf(angle) * model.rope_scale;
        }
    });
}

// Attention of the tokens [begin, end), whose keys and values join the cache.
void Sm3Engine::attention(const Sm3Batch& batch, int32_t index, int64_t begin, int64_t end) {
    const Sm3Layer& layer = layers[size_t(index)];
    const int32_t dim = model.head_dim;
    const int64_t q_size = int64_t(model.heads) * dim, kv_size = int64_t(model.kv_heads) * dim, tokens = end - begin;
    float* h = hidden.get(0) + begin * model.hidden;
    prepare_normed(h, tokens, layer.input_norm);
    float *queries = rows.get(tokens * q_size), *keys = k.get(tokens * kv_size), *values = v.get(tokens * kv_size);
    multiply(input, {{&layer.q, queries, q_size, false}, {&layer.k, keys, kv_size, false}, {&layer.v, values, kv_size, false}});
    const KvLayer store = kv(index);
    const float scale = 1.0f / sqrtf(float(dim));
    pool.run(tokens, [&](int64_t t) {
        const float *c = cos.get(0) + (begin + t) * (dim / 2), *s = sin.get(0) + (begin + t) * (dim / 2);
        const int32_t position = position_of[size_t(begin + t)];
        const int32_t* table = batch.blocks + int64_t(sequence_of[size_t(begin + t)]) * batch.max_blocks;
        for (int32_t head = 0; head < model.heads; head++) {
            float* at = queries + t * q_size + head * dim;
            if (layer.use_rope) kernels->rope(at, c, s, dim);
            for (int32_t d = 0; d < dim; d++) at[d] *= scale;
        }
        for (int32_t head = 0; head < model.kv_heads; head++) {
            float* at = keys + t * kv_size + head * dim;
            if (layer.use_rope) kernels->rope(at, c, s, dim);
            kernels->kv_append(store, table[position / KV_BLOCK], position % KV_BLOCK, head, at,
                               values + t * kv_size + head * dim);
        }
    });
    int32_t longest = 0;
    for (int64_t t = begin; t < end; t++) longest = std::max(longest, position_of[size_t(t)] + 1);
    const int64_t per_token = int64_t(model.heads) * ((longest + SPLIT - 1) / SPLIT) * (dim + 2);
    const int64_t chunk = std::max<int64_t>(1, PARTIAL_BUDGET / per_token);
    for (int64_t t = begin; t < end; t += chunk)
        attend(batch, index, t, std::min(end, t + chunk), queries + (t - begin) * q_size);
    input.resize(tokens, q_size, group);
    pool.run(tokens, [&](int64_t t) { prepare(input, t, queries + t * q_size, 0, q_size); });
    multiply(input, {{&layer.o, h, model.hidden, true}});
}

// Queries of tokens [first, last) become what they find: partials over fixed splits of the context, merged in order.
void Sm3Engine::attend(const Sm3Batch& batch, int32_t index, int64_t first, int64_t last, float* queries) {
    const Sm3Layer& layer = layers[size_t(index)];
    const KvLayer store = kv(index);
    const int32_t dim = model.head_dim, per_kv = model.heads / model.kv_heads;
    int32_t longest = 0;
    for (int64_t t = first; t < last; t++) longest = std::max(longest, position_of[size_t(t)] + 1);
    const int64_t splits = (longest + SPLIT - 1) / SPLIT, stride = dim + 2, count = last - first;
    float* parts = partials.get(count * model.heads * splits * stride);
    // A token's heads lie [split][head], as attend() writes them.
    auto part = [&](int64_t t, int64_t split, int64_t head) {
        return parts + (((t - first) * splits + split) * model.heads + head) * stride;
    };
    auto begin_of = [&](int64_t t) {
        return layer.window > 0 ? std::max(0, position_of[size_t(t)] + 1 - layer.window) : 0;
    };
    // A task takes all kv heads of a few splits, so that it reads long stretches; one head where that makes too few tasks.
    const int64_t wanted = TASKS_PER_THREAD * pool.size();
    const int64_t run = std::min(splits, std::max<int64_t>(1, count * splits / wanted)), runs = (splits + run - 1) / run;
    const int32_t wide = count * splits >= wanted || pool.size() == 1 ? model.kv_heads : 1;
    const int64_t widths = model.kv_heads / wide;
    pool.run(count * widths * runs, [&](int64_t task) {
        const int64_t split = task % runs * run, kv_head = task / runs % widths, t = first + task / runs / widths;
        const int32_t from = std::max(begin_of(t), int32_t(split * SPLIT));
        const int32_t to = std::min(position_of[size_t(t)] + 1, int32_t((split + run) * SPLIT));
        if (from >= to) return;
        const float* query = queries + ((t - first) * model.heads + kv_head * per_kv) * dim;
        const int32_t* table = batch.blocks + int64_t(sequence_of[size_t(t)]) * batch.max_blocks;
        kernels->attend(store, {query, table, int32_t(kv_head), wide, per_kv, from, to,
                                part(t, from / SPLIT, kv_head * per_kv), stride * model.heads});
    });
    pool.run(count, [&](int64_t i) {
        const int64_t t = first + i, from = begin_of(t) / SPLIT, to = position_of[size_t(t)] / SPLIT + 1;
        for (int32_t head = 0; head < model.heads; head++)
            kernels->merge(part(t, from, head), stride * model.heads, int32_t(to - from), dim,
                           queries + (i * model.heads + head) * dim);
    });
}

// Some rows of a matrix, from a whole panel on.
static Sm3Matrix rows_of(const Sm3Matrix& w, int64_t first, int64_t count) {
    const int64_t bytes = w.kind == SM3_BF16 ? first * w.cols * 2 : first / PANEL * panel_bytes(w);
    Sm3Matrix part = w;
    part.rows = count, part.data = static_cast<const uint8_t*>(w.data) + bytes;
    if (w.bias) part.bias = w.bias + first;
    return part;
}

// Of gate and up nothing is kept but what down multiplies: a thread takes a few columns of both for all tokens.
void Sm3Engine::feed_forward(const Sm3Layer& layer, int64_t begin, int64_t end) {
    const int64_t size = model.intermediate, tokens = end - begin, units = tile_count(size, UNIT);
    const int64_t most = std::max<int64_t>(1, NEAR_FLOATS / (2 * tokens * UNIT)), room = most * UNIT * tokens;
    float *h = hidden.get(0) + begin * model.hidden, *held = gated.get(pool.size() * 2 * room);
    prepare_normed(h, tokens, layer.post_norm);
    middle.resize(tokens, size, group);
    share_out(pool, units, 1, [&](int64_t first, int64_t last, int64_t thread) {
        float *gate = held + thread * 2 * room, *up = gate + room;
        for (; first < last; first += most) {
            const int64_t from = first * UNIT, count = std::min(size, std::min(last, first + most) * UNIT) - from;
            const Sm3Matrix gates = rows_of(layer.gate, from, count), ups = rows_of(layer.up, from, count);
            kernels->matmul(gates, input.view, 0, panel_count(gates), gate, count, false);
            kernels->matmul(ups, input.view, 0, panel_count(ups), up, count, false);
            for (int64_t t = 0; t < tokens; t++) {
                kernels->silu_mul(gate + t * count, up + t * count, count);
                prepare(middle, t, gate + t * count, from, count);
            }
        }
    });
    multiply(middle, {{&layer.down, h, model.hidden, true}});
}

void Sm3Engine::logits(const Sm3Batch& batch) {
    const int64_t size = model.hidden, count = batch.num_logits;
    const float* h = hidden.get(0);
    float* x = rows.get(count * size);
    input.resize(count, size, group);
    pool.run(count, [&](int64_t i) {
        kernels->rms_norm(h + batch.logit_rows[i] * size, model.final_norm, size, model.norm_eps, x + i * size);
        prepare(input, i, x + i * size, 0, size);
    });
    if (count > 0) multiply(input, {{&model.head, batch.logits, model.vocab, false}});
}

static void check_batch(const Sm3Engine& engine, const Sm3Batch& batch) {
    if (batch.sequences < 1 || batch.offsets[0] != 0) throw std::invalid_argument("a step needs at least one sequence");
    for (int32_t i = 0; i < batch.sequences; i++) {
        const int64_t count = int64_t(batch.offsets[i + 1]) - batch.offsets[i], end = batch.starts[i] + count;
        if (count < 1 || batch.starts[i] < 0) throw std::invalid_argument("a sequence brings no token or starts below 0");
        if (end > int64_t(batch.max_blocks) * KV_BLOCK) throw std::invalid_argument("a sequence outgrows its block table");
        for (int64_t b = 0; b * KV_BLOCK < end; b++) {
            const int32_t block = batch.blocks[int64_t(i) * batch.max_blocks + b];
            if (block < 0 || block >= engine.num_blocks) throw std::invalid_argument("a block table names no block of the cache");
        }
    }
    const int32_t tokens = batch.offsets[batch.sequences];
    for (int32_t t = 0; t < tokens; t++)
        if (batch.token_ids[t] < 0 || batch.token_ids[t] >= engine.model.vocab)
            throw std::invalid_argument("token id " + std::to_string(batch.token_ids[t]) + " is outside the vocabulary of " +
                                        std::to_string(engine.model.vocab));
    for (int32_t i = 0; i < batch.num_logits; i++)
        if (batch.logit_rows[i] < 0 || batch.logit_rows[i] >= tokens) throw std::invalid_argument("a logit row is outside the batch");
}

void Sm3Engine::forward(const Sm3Batch& batch) {
    check_batch(*this, batch);
    const int64_t tokens = batch.offsets[batch.sequences];
    embed(batch, tokens);
    angles(batch, tokens);
    // Pieces of about the same size, of whole tiles.
    const int64_t piece = round_up(tile_count(tokens, tile_count(tokens, PIECE)), kernels->max_tile);
    for (int32_t i = 0; i < model.layers; i++)
        for (int64_t begin = 0; begin < tokens; begin += piece) {
            const int64_t end = std::min(tokens, begin + piece);
            attention(batch, i, begin, end);
            feed_forward(layers[size_t(i)], begin, end);
        }
    if (batch.hidden)
        pool.run(tokens, [&](int64_t t) {
            kernels->rms_norm(hidden.get(0) + t * model.hidden, model.final_norm, model.hidden, model.norm_eps,
                              batch.hidden + t * model.hidden);
        });
    logits(batch);
}

// ---- the C border: exceptions become error codes ----------------------------------------------------

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
SM3_API int32_t sm3_abi_version(void) { return 1; }
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
        const int32_t group = w.cols % 64 || (w.kind != SM3_BF16 && w.group % 64) ? 32 : 64;
        input.resize(n, w.cols, group);
        pool.run(n, [&](int64_t t) {
            prepare_columns(*kernels, input.view, t, x + t * w.cols, 0, w.cols, w.kind != SM3_BF16, w.kind == SM3_BF16);
        });
        share_out(pool, panel_count(w), SHORTEST, [&](int64_t begin, int64_t end, int64_t) {
            kernels->matmul(w, input.view, begin, end, out, w.rows, false);
        });
    });
}
