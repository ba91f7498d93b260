// One forward step of the whole model over a mixed batch: rows of several sequences, some prefilling, some decoding.
#include "engine.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <stdexcept>
#include <string>

constexpr int64_t PIECE = 192;  // tokens that go through a layer together: bounds the scratch memory

void check_matrix(const Sm3Matrix& w, int64_t rows, int64_t cols, const char* name) {
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
      num_blocks(num_blocks) {
    model.layer = layers.data();
    const int64_t heads = int64_t(m.heads) * m.head_dim, kv_heads = int64_t(m.kv_heads) * m.head_dim;
    if (m.head_dim % PANEL || m.hidden % 32 || m.intermediate % 32 || heads % 32 || m.heads % m.kv_heads)
        throw std::invalid_argument("head_dim must divide by 16, hidden and intermediate sizes by 32");
    auto look = [&](const Sm3Matrix& w, int64_t rows, int64_t cols, const char* name) {
        check_matrix(w, rows, cols, name);
        (w.kind == SM3_BF16 ? any_bf16 : any_quantized) = true;
        scheme.suit(w);
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
    auto settle = [&](const Sm3Matrix& w) {
        if (w.kind != SM3_BF16) settling.add(w.data, panel_count(w) * panel_bytes(w));
    };
    for (const Sm3Layer& l : layers)
        for (const Sm3Matrix* w : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down}) settle(*w);
    settle(model.head);
}

void Sm3Engine::embed(const Sm3Batch& batch, int64_t tokens) {
    float* h = hidden.get(tokens * model.hidden);
    pool.run(tokens, [&](int64_t t) {
        sm3_unpack_rows(&model.embedding, batch.token_ids[t], 1, h + t * model.hidden);
    });
}

// Which sequence each token belongs to, and where in it it stands.
void Sm3Engine::place(const Sm3Batch& batch) {
    const size_t tokens = size_t(batch.offsets[batch.sequences]);
    sequence_of.resize(tokens), position_of.resize(tokens);
    for (int32_t i = 0; i < batch.sequences; i++)
        for (int32_t t = batch.offsets[i]; t < batch.offsets[i + 1]; t++) {
            sequence_of[size_t(t)] = i;
            position_of[size_t(t)] = batch.starts[i] + t - batch.offsets[i];
        }
}

// cos and sin of every token's position, in float as the reference computes them.
void Sm3Engine::angles(int64_t tokens) {
    const int64_t half = model.head_dim / 2;
    float *c = cos.get(tokens * half), *s = sin.get(tokens * half);
    pool.run(tokens, [&](int64_t t) {
        for (int64_t i = 0; i < half; i++) {
            const float angle = float(position_of[size_t(t)]) * model.inv_freq[i];
            c[t * half + i] = cosf(angle) * model.rope_scale;
            s[t * half + i] = sinf(angle) * model.rope_scale;
        }
    });
}

// Only these tokens go on, as tokens 0, 1, ...
void Sm3Engine::keep(const int32_t* tokens, int64_t count) {
    const int64_t size = model.hidden;
    float *h = hidden.get(0), *kept = rows.get(count * size);
    std::vector<int32_t> sequences, positions;
    for (int64_t i = 0; i < count; i++) {
        memcpy(kept + i * size, h + tokens[i] * size, sizeof(float) * size_t(size));
        sequences.push_back(sequence_of[size_t(tokens[i])]), positions.push_back(position_of[size_t(tokens[i])]);
    }
    memcpy(h, kept, sizeof(float) * size_t(count * size));
    sequence_of = std::move(sequences), position_of = std::move(positions);
}

// Of the tokens that are left, one for each row of logits.
void Sm3Engine::logits(const Sm3Batch& batch) {
    if (batch.num_logits < 1) return;
    prepare_normed(hidden.get(0), batch.num_logits, model.final_norm);
    multiply(input, {{&model.head, batch.logits, model.vocab, false}});
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
        if (batch.logit_rows[i] < (i ? batch.logit_rows[i - 1] + 1 : 0) || batch.logit_rows[i] >= tokens)
            throw std::invalid_argument("a logit row is outside the batch, or not after the one before");
}

// A layer, or its first or second half, in pieces of about the same size, of whole tiles.
void Sm3Engine::layer_step(const Sm3Batch& batch, int32_t layer, int64_t tokens, Half half) {
    if (tokens < 1) return;
    const int64_t piece = round_up(tile_count(tokens, tile_count(tokens, PIECE)), kernels->max_tile);
    for (int64_t begin = 0; begin < tokens; begin += piece) {
        const int64_t end = std::min(tokens, begin + piece);
        attention(batch, layer, begin, end, half);
        if (half != Half::remember) feed_forward(layers[size_t(layer)], begin, end);
    }
}

void Sm3Engine::forward(const Sm3Batch& batch) {
    check_batch(*this, batch);
    const int64_t tokens = batch.offsets[batch.sequences];
    embed(batch, tokens);
    place(batch);
    angles(tokens);
    const int32_t last = model.layers - 1;
    for (int32_t i = 0; i < last; i++) layer_step(batch, i, tokens, Half::both);
    // Beyond the last layer's keys and values, only tokens whose logits are wanted matter, unless all states are.
    const bool few = batch.num_logits < tokens;
    layer_step(batch, last, tokens, few && !batch.hidden ? Half::remember : Half::both);
    if (batch.hidden)
        pool.run(tokens, [&](int64_t t) {
            const float *h = hidden.get(0) + t * model.hidden, scale = kernels->rms_scale(h, model.hidden, model.norm_eps);
            kernels->scale_columns(h, scale, model.final_norm, model.hidden, batch.hidden + t * model.hidden);
        });
    if (few) keep(batch.logit_rows, batch.num_logits);
    if (few && !batch.hidden) {
        angles(batch.num_logits);
        layer_step(batch, last, batch.num_logits, Half::ask);
    }
    logits(batch);
}
