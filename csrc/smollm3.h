// The C ABI of the native engine: plain structs, raw pointers, no exceptions across the border.
//
// A caller describes a model by pointers into memory that it owns and keeps alive, makes a KV cache of
// blocks, and asks for one forward step at a time over a mixed batch of sequences. Nothing here knows
// files, text or Python. Functions that can fail return a negative number; sm3_error() says why.
#pragma once
#include <stdint.h>

#if defined(_WIN32)
#define SM3_API extern "C" __declspec(dllexport)
#else
#define SM3_API extern "C" __attribute__((visibility("default")))
#endif

enum Sm3Kind : int32_t {
    SM3_BF16 = 0,  // row-major [rows][cols] bf16, used in place
    SM3_W4 = 1,    // panels of 16 rows, 4-bit codes
    SM3_W8 = 2,    // panels of 16 rows, 8-bit codes
    SM3_W6 = 3,    // panels of 16 rows, 6-bit codes
};

// One weight matrix, y = W x + bias. Quantized kinds lie in panels of 16 rows (see pack.cpp):
// w = scale * (code - zero) [+ minimum], or scale * table[code] where a table is given.
struct Sm3Matrix {
    int32_t kind;
    int32_t group;      // columns that share a scale: 32, 64 or 128
    int32_t zero;       // code that stands for 0 (W4: 0 or 8; W6: 32; W8: 128)
    int32_t has_min;    // 1: a minimum is stored beside each scale
    int32_t has_table;  // 1: codes index `table` (W4)
    int8_t table[16];
    int64_t rows, cols;
    const void* data;
    const float* bias;  // [rows] or null
};

struct Sm3Layer {
    Sm3Matrix q, k, v, o, gate, up, down;
    const float* input_norm;      // [hidden]
    const float* post_norm;       // [hidden]
    int32_t use_rope;             // 0 on NoPE layers
    int32_t window;               // positions that attend, itself included; 0: all
};

struct Sm3Model {
    int64_t hidden, intermediate, vocab;
    int32_t layers, heads, kv_heads, head_dim;
    float norm_eps, rope_scale;   // rope_scale multiplies cos and sin (YaRN)
    const float* inv_freq;        // [head_dim / 2]
    const Sm3Layer* layer;        // [layers]
    const float* final_norm;      // [hidden]
    Sm3Matrix embedding;          // [vocab][hidden]
    Sm3Matrix head;               // the same matrix when tied
};

// One step: `sequences` rows of work. Sequence i brings token_ids[offsets[i] .. offsets[i+1]) which stand at
// positions starts[i], starts[i]+1, ...; its KV lies in blocks[i * max_blocks + position / block_size].
struct Sm3Batch {
    int32_t sequences, max_blocks;
    const int32_t* token_ids;
    const int32_t* offsets;       // [sequences + 1]
    const int32_t* starts;        // [sequences]
    const int32_t* blocks;        // [sequences][max_blocks]
    const int32_t* logit_rows;    // [num_logits] indices into token_ids, ascending
    int32_t num_logits;
    float* logits;                // [num_logits][vocab]
    float* hidden;                // [tokens][hidden] after the final norm, or null
};

enum Sm3Isa : int32_t {
    SM3_PORTABLE = 0,
    SM3_AVX2 = 1,
    SM3_AVX_VNNI = 2,
    SM3_AVX512 = 3,
    SM3_AVX512_BF16 = 4,
    SM3_ZEN4 = 5,
    SM3_AMX = 6,
    SM3_NEON = 7,
    SM3_ISAS = 8,
};

struct Sm3Engine;

SM3_API const char* sm3_error(void);
SM3_API int32_t sm3_abi_version(void);
SM3_API int32_t sm3_usable_isas(void);  // bit i: Sm3Isa i was compiled and runs here; the highest is the best
SM3_API const char* sm3_amx_missing(void);  // why a processor with AMX does not use it here; empty: it does, or has none

// kv_bits: 16 (bf16) or 8. threads >= 1. Copies the descriptions, not what they point to.
SM3_API Sm3Engine* sm3_create(const Sm3Model* model, int32_t threads, int32_t isa, int32_t kv_bits,
                              int32_t num_blocks);
SM3_API void sm3_destroy(Sm3Engine* engine);
SM3_API int32_t sm3_block_size(void);
SM3_API int64_t sm3_block_bytes(const Sm3Engine* engine);
SM3_API int32_t sm3_forward(Sm3Engine* engine, const Sm3Batch* batch);
SM3_API int32_t sm3_copy_block(Sm3Engine* engine, int32_t from, int32_t to);
// The sm3_block_bytes of one KV block, to save and to load; null where there is no such block.
SM3_API void* sm3_block_data(Sm3Engine* engine, int32_t block);
// Packed weights that lie in a mapped file move into huge pages, about `budget` bytes a call, between two steps; they keep their
// addresses, the file's pages are let go. Returns the bytes still to move, 0 when all lie well, or a negative number.
SM3_API int64_t sm3_settle(Sm3Engine* engine, int64_t budget);

// Memory for weights and caches, in huge pages where the system gives them; zeroed, and taken only as it is
// touched.
SM3_API void* sm3_alloc(int64_t size);
SM3_API void sm3_free(void* memory, int64_t size);

// Packing: codes are one byte each [rows][cols], scales and minimums float [rows][cols / group].
SM3_API int64_t sm3_packed_size(const Sm3Matrix* matrix);
SM3_API int32_t sm3_pack(const Sm3Matrix* matrix, const uint8_t* codes, const float* scales, const float* mins,
                         void* out);
// Rounds weights [rows][cols], float or bf16, to a matrix's scheme (zero 8, 32 or 128, a minimum, or a table of
// ascending points; group up to 128) with the least squared error per group. Returns 1 where a weight is not finite, 2 where
// a scale is beyond f16. The result depends on neither threads nor instruction set.
SM3_API int32_t sm3_quantize(const Sm3Matrix* matrix, const void* weights, int32_t is_bf16, void* out,
                             int32_t threads, int32_t isa);
// Packs the blocks of a GGUF file, [rows][cols / 32]: Q4_0 (zero 8), Q4_1 (a minimum) or Q8_0 (8-bit codes, zero
// 128); the group is 32. Every weight keeps its value.
SM3_API int32_t sm3_pack_blocks(const Sm3Matrix* matrix, const uint8_t* blocks, void* out, int32_t threads);
// Packs four-bit codes [rows][cols / 2], the first column of a byte in its high nibble, with scales
// [rows][cols / group]; and gives such codes back.
SM3_API int32_t sm3_pack_nibbles(const Sm3Matrix* matrix, const uint8_t* codes, const float* scales, void* out,
                                 int32_t threads);
SM3_API int32_t sm3_unpack_nibbles(const Sm3Matrix* matrix, uint8_t* codes);
// The weights that a matrix stands for: out [row_count][cols].
SM3_API int32_t sm3_unpack_rows(const Sm3Matrix* matrix, int64_t first_row, int64_t row_count, float* out);
// One product through the chosen kernels: out [n][rows] = x [n][cols] W^T + bias; for tests and benchmarks.
SM3_API int32_t sm3_matmul(const Sm3Matrix* matrix, const float* x, int64_t n, float* out, int32_t threads,
                           int32_t isa);
// Reads `size` bytes (whole words of 8) on `threads` threads and returns the exclusive or of the words; its time is
// what the machine needs to read them.
SM3_API uint64_t sm3_read(const void* data, int64_t size, int32_t threads);
