// One decoder layer over a piece of a batch: attention and the feed-forward network. No sum depends on the piece.
#include "engine.h"

#include <math.h>

#include <algorithm>

constexpr int64_t TASKS_PER_THREAD = 4;      // of attention
constexpr int64_t PARTIAL_BUDGET = 1 << 18;  // floats of attention partials held at a time
constexpr int64_t UNIT = 64;                 // columns of gate and up that are taken together: whole groups, whole panels
constexpr int64_t NEAR_FLOATS = 32 << 10;    // of gate and up that a thread holds, if a unit is not more

void prepare_tile(const Kernels& kernels, const Activations& a, int64_t tile, const float* x, int64_t stride, int64_t from,
                  int64_t count, bool codes, bool bf16) {
    const int64_t tiles = tile_count(a.rows, kernels.max_tile);
    const int64_t first = tile_begin(a.rows, tiles, tile), size = tile_begin(a.rows, tiles, tile + 1) - first;
    if (codes) {
        const int64_t at = first * (a.cols / a.scheme.group) + from / a.scheme.group * size;
        kernels.quantize(x, stride, count, a.scheme, size, a.rows >= kernels.tiled_from,
                         {(int8_t*)a.codes + first * a.cols + from * size, (float*)a.scales + at, (int32_t*)a.sums + at,
                          (int32_t*)a.pairs + at});
    }
    if (bf16) kernels.to_bf16(x, stride, from, count, a.cols, size, (uint16_t*)a.bf16 + first * a.cols);
}

void Sm3Engine::prepare(const Prepared& to, int64_t tile, const float* x, int64_t stride, int64_t from, int64_t count) {
    prepare_tile(*kernels, to.view, tile, x, stride, from, count, any_quantized, any_bf16);
}

// Calls work(tile, its first row, the row after it, from, to) for all columns of all tiles. Where tiles are fewer than threads,
// these share a tile by its columns: codes of its tokens lie in the same cache lines.
template <typename Work>
void Sm3Engine::each_piece(const Activations& a, const Work& work) {
    const int64_t tiles = tile_count(a.rows, kernels->max_tile), units = tile_count(a.cols, UNIT);
    const int64_t parts = std::min(units, tile_count(pool.size(), tiles));
    share_out(pool, tiles * parts, 1, [&](int64_t begin, int64_t end, int64_t) {
        for (int64_t i = begin; i < end; i++) {
            const int64_t tile = i / parts, from = tile_begin(units, parts, i % parts) * UNIT;
            const int64_t to = std::min(a.cols, tile_begin(units, parts, i % parts + 1) * UNIT);
            work(tile, tile_begin(a.rows, tiles, tile), tile_begin(a.rows, tiles, tile + 1), from, to);
        }
    });
}

// The rows of h, normed and prepared as `input`.
void Sm3Engine::prepare_normed(const float* h, int64_t tokens, const float* norm) {
    const int64_t size = model.hidden;
    input.resize(tokens, size, scheme);
    each_piece(input.view, [&](int64_t tile, int64_t first, int64_t last, int64_t from, int64_t to) {
        float scales[MOST_TOKENS], normed[MOST_TOKENS * UNIT];
        for (int64_t t = first; t < last; t++) scales[t - first] = kernels->rms_scale(h + t * size, size, model.norm_eps);
        for (; from < to; from += UNIT) {
            const int64_t count = std::min(UNIT, to - from);
            for (int64_t t = first; t < last; t++)
                kernels->scale_columns(h + t * size + from, scales[t - first], norm + from, count, normed + (t - first) * count);
            prepare(input, tile, normed, count, from, count);
        }
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

// How many splits the longest context among the tokens [begin, end) has.
int64_t Sm3Engine::splits_of(int64_t begin, int64_t end) const {
    return *std::max_element(position_of.begin() + begin, position_of.begin() + end) / SPLIT + 1;
}

// The heads of a token's query or key, turned by its position.
void Sm3Engine::turn(const Sm3Layer& layer, int64_t token, int32_t heads, float* x) {
    const int32_t dim = model.head_dim;
    const int64_t at = token * (dim / 2);
    for (int32_t head = 0; layer.use_rope && head < heads; head++)
        kernels->rope(x + head * dim, cos.get(0) + at, sin.get(0) + at, dim);
}

// A token's key and value join the cache.
void Sm3Engine::append(const Sm3Batch& batch, int32_t index, int64_t token, const float* key, const float* value) {
    const int32_t position = position_of[size_t(token)];
    const int32_t* table = batch.blocks + int64_t(sequence_of[size_t(token)]) * batch.max_blocks;
    const KvLayer store = kv(index);
    for (int32_t head = 0; head < model.kv_heads; head++)
        kernels->kv_append(store, table[position / KV_BLOCK], position % KV_BLOCK, head, key + head * model.head_dim,
                           value + head * model.head_dim);
}

// Attention of the tokens [begin, end), whose keys and values join the cache; or one half of it.
void Sm3Engine::attention(const Sm3Batch& batch, int32_t index, int64_t begin, int64_t end, Half half) {
    const Sm3Layer& layer = layers[size_t(index)];
    const int32_t dim = model.head_dim;
    const int64_t q_size = int64_t(model.heads) * dim, kv_size = int64_t(model.kv_heads) * dim, tokens = end - begin;
    const bool asks = half != Half::remember, remembers = half != Half::ask;
    float* h = hidden.get(0) + begin * model.hidden;
    prepare_normed(h, tokens, layer.input_norm);
    float *queries = rows.get(tokens * q_size), *keys = k.get(tokens * kv_size), *values = v.get(tokens * kv_size);
    const Use to_queries{&layer.q, queries, q_size, false};
    const Use to_keys{&layer.k, keys, kv_size, false}, to_values{&layer.v, values, kv_size, false};
    if (!asks) multiply(input, {to_keys, to_values});
    else if (!remembers) multiply(input, {to_queries});
    else multiply(input, {to_queries, to_keys, to_values});
    const float scale = 1.0f / sqrtf(float(dim));
    each_token(pool, tokens, [&](int64_t t) {
        float *query = queries + t * q_size, *key = keys + t * kv_size;
        if (asks) {
            turn(layer, begin + t, model.heads, query);
            for (int64_t i = 0; i < q_size; i++) query[i] *= scale;
        }
        if (remembers) {
            turn(layer, begin + t, model.kv_heads, key);
            append(batch, index, begin + t, key, values + t * kv_size);
        }
    });
    if (asks) answer(batch, index, begin, end, queries);
}

// What the queries of the tokens [begin, end) find in the cache, multiplied and added to the tokens.
void Sm3Engine::answer(const Sm3Batch& batch, int32_t index, int64_t begin, int64_t end, float* queries) {
    const int32_t dim = model.head_dim;
    const int64_t q_size = int64_t(model.heads) * dim, tokens = end - begin;
    const int64_t per_token = int64_t(model.heads) * splits_of(begin, end) * (dim + 2);
    const int64_t chunk = std::max<int64_t>(1, PARTIAL_BUDGET / per_token);
    for (int64_t t = begin; t < end; t += chunk)
        attend(batch, index, t, std::min(end, t + chunk), queries + (t - begin) * q_size);
    input.resize(tokens, q_size, scheme);
    each_piece(input.view, [&](int64_t tile, int64_t first, int64_t, int64_t from, int64_t to) {
        prepare(input, tile, queries + first * q_size + from, q_size, from, to - from);
    });
    multiply(input, {{&layers[size_t(index)].o, hidden.get(0) + begin * model.hidden, model.hidden, true}});
}

// Queries of tokens [first, last) become what they find: partials over fixed splits of the context, merged in order.
void Sm3Engine::attend(const Sm3Batch& batch, int32_t index, int64_t first, int64_t last, float* queries) {
    const Sm3Layer& layer = layers[size_t(index)];
    const KvLayer store = kv(index);
    const int32_t dim = model.head_dim, per_kv = model.heads / model.kv_heads;
    const int64_t splits = splits_of(first, last), stride = dim + 2, count = last - first;
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
    const int64_t tiles = tile_count(tokens, kernels->max_tile);
    const int64_t most = std::max<int64_t>(1, NEAR_FLOATS / (2 * tokens * UNIT)), room = most * UNIT * tokens;
    float *h = hidden.get(0) + begin * model.hidden, *held = gated.get(pool.size() * 2 * room);
    prepare_normed(h, tokens, layer.post_norm);
    middle.resize(tokens, size, scheme);
    share_out(pool, units, 1, [&](int64_t first, int64_t last, int64_t thread) {
        float *gate = held + thread * 2 * room, *up = gate + room;
        for (; first < last; first += most) {
            const int64_t from = first * UNIT, count = std::min(size, std::min(last, first + most) * UNIT) - from;
            const Sm3Matrix gates = rows_of(layer.gate, from, count), ups = rows_of(layer.up, from, count);
            kernels->matmul(gates, input.view, 0, panel_count(gates), gate, count, false);
            kernels->matmul(ups, input.view, 0, panel_count(ups), up, count, false);
            for (int64_t t = 0; t < tokens; t++) kernels->silu_mul(gate + t * count, up + t * count, count);
            for (int64_t i = 0; i < tiles; i++)
                prepare(middle, i, gate + tile_begin(tokens, tiles, i) * count, count, from, count);
        }
    });
    multiply(middle, {{&layer.down, h, model.hidden, true}});
}
