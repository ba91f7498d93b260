// Runs the whole native engine: every layout, instruction set and cache, mixed batches on several threads, two engines
// at once, steps that must be refused, and the making of panels. Under the sanitizers (`make sanitize`), and as Arm code
// (test_arm.py), for which it prints a digest of every run's logits.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "../../csrc/smollm3.h"

namespace {

std::mt19937 rng(0);

struct Packed {
    std::vector<uint8_t> data;
    Sm3Matrix matrix{};
};

int32_t zero_of(int32_t kind, bool min, bool table) {
    return kind == SM3_W8 ? 128 : kind == SM3_W6 ? 32 : min || table ? 0 : 8;
}

std::unique_ptr<Packed> make(int32_t kind, int32_t group, bool min, bool table, int64_t rows, int64_t cols) {
    auto packed = std::make_unique<Packed>();
    Sm3Matrix& w = packed->matrix;
    w.kind = kind, w.group = group, w.rows = rows, w.cols = cols;
    w.zero = zero_of(kind, min, table);
    w.has_min = min, w.has_table = table;
    for (int i = 0; i < 16; i++) w.table[i] = int8_t(i * 15 - 127);
    if (kind == SM3_BF16) {
        packed->data.resize(size_t(rows * cols * 2));
        for (size_t i = 0; i < packed->data.size(); i += 2) packed->data[i] = uint8_t(rng()), packed->data[i + 1] = 0x3c;
    } else {
        std::vector<uint8_t> codes(size_t(rows * cols));
        for (auto& code : codes) code = uint8_t(kind == SM3_W8 ? 1 + rng() % 255 : rng() % (kind == SM3_W6 ? 64 : 16));
        std::vector<float> scales(size_t(rows * cols / group), 0.01f), mins(scales.size(), -0.05f);
        packed->data.resize(size_t(sm3_packed_size(&w)));
        if (sm3_pack(&w, codes.data(), scales.data(), mins.data(), packed->data.data())) abort();
    }
    w.data = packed->data.data();
    return packed;
}

// A model of two layers whose vocabulary is no multiple of a panel.
struct Model {
    static constexpr int64_t HIDDEN = 96, INNER = 160, VOCAB = 53;
    static constexpr int32_t HEADS = 6, KV_HEADS = 2, DIM = 16;
    std::vector<std::unique_ptr<Packed>> weights;
    std::vector<float> norm = std::vector<float>(HIDDEN, 1.0f), freq = std::vector<float>(DIM / 2, 0.1f);
    std::vector<float> bias = std::vector<float>(INNER, 0.1f);
    Sm3Layer layers[2]{};
    Sm3Model model{};

    Sm3Matrix add(int32_t kind, int32_t group, bool min, bool table, int64_t rows, int64_t cols) {
        weights.push_back(make(kind, group, min, table, rows, cols));
        return weights.back()->matrix;
    }
    Model(int32_t kind, int32_t group, bool min, bool table) {
        auto matrix = [&](int64_t rows, int64_t cols) { return add(kind, group, min, table, rows, cols); };
        for (Sm3Layer& layer : layers) {
            layer.q = matrix(HEADS * DIM, HIDDEN), layer.k = matrix(KV_HEADS * DIM, HIDDEN);
            layer.v = matrix(KV_HEADS * DIM, HIDDEN), layer.o = matrix(HIDDEN, HEADS * DIM);
            layer.gate = matrix(INNER, HIDDEN), layer.up = matrix(INNER, HIDDEN), layer.down = matrix(HIDDEN, INNER);
            layer.up.bias = bias.data();
            layer.input_norm = layer.post_norm = norm.data();
        }
        layers[0].use_rope = 1, layers[1].window = 30;
        model = {HIDDEN, INNER, VOCAB, 2, HEADS, KV_HEADS, DIM, 1e-5f, 1.0f, freq.data(), layers, norm.data(), {}, {}};
        model.embedding = model.head = matrix(VOCAB, HIDDEN);
    }
};

std::atomic<int> failures{0};

// One sequence gives its states too; several, whose tokens without logits end with the last layer's keys, do not.
int32_t step(Sm3Engine* engine, std::vector<int32_t> ids, std::vector<int32_t> offsets, std::vector<int32_t> starts,
             std::vector<int32_t> blocks, int32_t max_blocks, std::vector<float>* last = nullptr) {
    std::vector<int32_t> rows;
    for (size_t i = 1; i < offsets.size(); i++) rows.push_back(offsets[i] - 1);
    std::vector<float> logits(rows.size() * Model::VOCAB), hidden(ids.size() * Model::HIDDEN);
    Sm3Batch batch{int32_t(starts.size()), max_blocks, ids.data(), offsets.data(), starts.data(), blocks.data(),
                   rows.data(), int32_t(rows.size()), logits.data(), starts.size() > 1 ? nullptr : hidden.data()};
    const int32_t result = sm3_forward(engine, &batch);
    if (last) last->assign(logits.end() - Model::VOCAB, logits.end());
    return result;
}

std::vector<int32_t> tokens(int count) {
    std::vector<int32_t> ids;
    for (int i = 0; i < count; i++) ids.push_back(i * 7 % Model::VOCAB);
    return ids;
}

// Fowler-Noll-Vo of the bits.
uint64_t digest(const std::vector<float>& x) {
    uint64_t hash = 14695981039346656037u;
    const uint8_t* bytes = (const uint8_t*)x.data();
    for (size_t i = 0; i < x.size() * sizeof(float); i++) hash = (hash ^ bytes[i]) * 1099511628211u;
    return hash;
}

uint64_t run(const Model& model, int32_t isa, int32_t kv_bits) {
    Sm3Engine* engine = sm3_create(&model.model, 3, isa, kv_bits, 16);
    if (!engine) return failures++, 0;
    std::vector<float> whole, pieces;
    failures += step(engine, tokens(133), {0, 133}, {0}, {3, 1, 4}, 3, &whole) != 0;
    auto ids = tokens(133);
    failures += step(engine, {ids.begin(), ids.begin() + 70}, {0, 70}, {0}, {5, 9, 2}, 3) != 0;
    std::vector<int32_t> mixed{1, 2, 3};
    mixed.insert(mixed.end(), ids.begin() + 70, ids.end());
    failures += step(engine, mixed, {0, 3, 66}, {0, 70}, {6, 0, 0, 5, 9, 2}, 3, &pieces) != 0;
    failures += memcmp(whole.data(), pieces.data(), whole.size() * sizeof(float)) != 0;
    failures += sm3_copy_block(engine, 2, 7) != 0;
    failures += step(engine, {1}, {0, 1}, {64}, {5, 99}, 2) == 0;     // no such block
    failures += step(engine, {-1}, {0, 1}, {0}, {5}, 1) == 0;         // no such token
    failures += step(engine, tokens(65), {0, 65}, {0}, {5}, 1) == 0;  // more tokens than blocks
    sm3_destroy(engine);
    return digest(whole);
}

// Every way into panels and out of them, on odd sizes and three threads.
void make_panels(const Sm3Matrix& layout, int32_t isa) {
    constexpr int64_t ROWS = 37, COLS = 192;
    Sm3Matrix w = layout;
    w.rows = ROWS, w.cols = COLS;
    std::vector<float> x(ROWS * COLS), back(ROWS * COLS);
    for (size_t i = 0; i < x.size(); i++) x[i] = float(int(i * 2654435761u >> 20) % 2001 - 1000) * 1e-3f;
    std::vector<uint8_t> panels(size_t(sm3_packed_size(&w))), again(panels.size());
    w.data = panels.data();
    failures += sm3_quantize(&w, x.data(), 0, panels.data(), 3, isa) != 0;
    failures += sm3_quantize(&w, x.data(), 0, again.data(), 1, 0) != 0;
    failures += panels != again;
    failures += sm3_unpack_rows(&w, 0, ROWS, back.data()) != 0;
    for (size_t i = 0; i < x.size(); i++) failures += !(back[i] - x[i] < 0.2f && x[i] - back[i] < 0.2f);
    x[5] = NAN;
    failures += sm3_quantize(&w, x.data(), 0, again.data(), 3, isa) != 1;
    if (w.kind == SM3_W4 && !w.has_min) {
        std::vector<uint8_t> codes(ROWS * COLS / 2), kept(codes.size());
        failures += sm3_unpack_nibbles(&w, codes.data()) != 0;
        std::vector<float> scales(ROWS * COLS / w.group, 0.5f);
        failures += sm3_pack_nibbles(&w, codes.data(), scales.data(), panels.data(), 3) != 0;
        failures += sm3_unpack_nibbles(&w, kept.data()) != 0;
        failures += codes != kept;
    }
    if (!w.has_table && w.kind != SM3_W6) {
        const size_t block = 2 + 2 * w.has_min + (w.kind == SM3_W4 ? 16 : 32);
        const std::vector<uint8_t> blocks(ROWS * COLS / 32 * block, 0x11);
        failures += sm3_pack_blocks(&w, blocks.data(), panels.data(), 3) != 0;
    }
}

}  // namespace

int main() {
    struct Layout { int32_t kind, group; bool min, table; };
    const Layout layouts[] = {{SM3_BF16, 32, false, false}, {SM3_W4, 32, false, false}, {SM3_W4, 32, true, false},
                              {SM3_W4, 32, false, true},    {SM3_W6, 32, false, false}, {SM3_W8, 32, false, false}};
    for (const Layout& layout : layouts) {
        Sm3Matrix matrix{};
        matrix.kind = layout.kind, matrix.group = layout.group, matrix.has_min = layout.min, matrix.has_table = layout.table;
        matrix.zero = zero_of(layout.kind, layout.min, layout.table);
        for (int i = 0; i < 16; i++) matrix.table[i] = int8_t(i * 16 - 120);
        const Model model(layout.kind, layout.group, layout.min, layout.table);
        int32_t best = SM3_PORTABLE;
        for (int32_t isa = 0; isa < SM3_ISAS; isa++) {
            if (!(sm3_usable_isas() >> isa & 1)) continue;
            best = isa;
            if (layout.kind != SM3_BF16) make_panels(matrix, isa);
            for (int32_t kv_bits : {16, 8})
                printf("kind %d min %d table %d kv %d isa %d: %016llx\n", layout.kind, layout.min, layout.table, kv_bits, isa,
                       (unsigned long long)run(model, isa, kv_bits));
        }
        std::thread beside([&] { run(model, best, 16); });
        run(model, best, 8);
        beside.join();
    }
    printf("%d failures\n", failures.load());
    return failures != 0;
}
