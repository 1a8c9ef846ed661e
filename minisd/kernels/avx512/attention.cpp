// Attention: softmax(q k^T / sqrt(d)) v for each head, in float32 or bfloat16.
//
// FlashAttention's order of work (Dao et al. 2022, arXiv:2205.14135) in vector registers: a block of queries passes
// over 256 keys at a time, with a running maximum and sum. Scores, exponentials and sums are float32; bfloat16
// enters the products two at a time (VDPBF16PS), and the weights are rounded to it before the second product, as
// in every flash attention. Both products are one micro-kernel over 32-bit words.
#include "common.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace {

constexpr int64_t PANEL = 64;       // keys in a panel: four vectors
constexpr int64_t KEYS = 256;       // in a block: 48 x 256 scores and weights stay in the second-level cache
constexpr int64_t QUERIES = 48;     // in a block: a multiple of 4, 6 and 8, the rows of a tile
constexpr int64_t CHUNK = 64;       // words that are summed on their own: errors grow with the length of a sum
constexpr int64_t SERIAL = 1 << 20;  // products: fewer are not worth another thread

const std::vector<float> all_ones(QUERIES, 1.0f);
const float* const ones = all_ones.data();

int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// c [R, 16 C] = sum over i < length of a[row][i] b[i][.], and with factors c * the row's factor added at the end
template <class T, int R, int C>
void tile(const Word* a, int64_t a_row, const Word* b, int64_t b_row, int64_t length, float* c, int64_t c_row,
          const float* factor) {
    __m512 sum[R][C];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < C; j++) sum[r][j] = _mm512_setzero_ps();
    for (int64_t i = 0; i < length; i++) {
        __m512i columns[C];
        for (int j = 0; j < C; j++) columns[j] = _mm512_loadu_si512(b + i * b_row + 16 * j);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            __m512i one = _mm512_set1_epi32(static_cast<int>(a[r * a_row + i]));
#pragma GCC unroll 8
            for (int j = 0; j < C; j++) sum[r][j] = T::dot(sum[r][j], one, columns[j]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < C; j++) {
            float* to = c + r * c_row + 16 * j;
            if (factor) sum[r][j] = _mm512_fmadd_ps(_mm512_loadu_ps(to), _mm512_set1_ps(factor[r]), sum[r][j]);
            _mm512_storeu_ps(to, sum[r][j]);
        }
}

// the same for all rows, a multiple of R
template <class T, int R, int C>
void strip(int64_t rows, const Word* a, int64_t a_row, const Word* b, int64_t b_row, int64_t length, float* c,
           int64_t c_row, const float* factor) {
    for (int64_t r = 0; r < rows; r += R)
        tile<T, R, C>(a + r * a_row, a_row, b, b_row, length, c + r * c_row, c_row, factor ? factor + r : nullptr);
}

struct Call {
    const void *q, *k, *v;
    void* out;
    int64_t b, h, n, m, d;                           // images, heads, queries, keys, head dim
    int64_t q_b, q_n, k_b, k_n, v_b, v_n, o_b, o_n;  // strides in elements; heads lie d apart, d is contiguous
    int64_t causal, threads;
};

template <class T>
struct Attention {
    using E = typename T::Element;
    const Call& c;
    const int64_t words = up(c.d, T::step) / T::step;  // of a query or key
    const int64_t width = up(c.d, 16);                 // of a value: whole vectors
    const int64_t panels = up(c.m, PANEL) / PANEL;
    const int64_t key_size = panels * words * PANEL, value_size = panels * PANEL / T::step * width;
    std::vector<Word> keys = {}, values = {};

    // K as panels [words, 64 keys], V as [words of keys, width]; zeros beyond the last key
    void pack(int64_t head) {
        const E* k = static_cast<const E*>(c.k) + head / c.h * c.k_b + head % c.h * c.d;
        const E* v = static_cast<const E*>(c.v) + head / c.h * c.v_b + head % c.h * c.d;
        E* key = reinterpret_cast<E*>(keys.data() + head * key_size);
        E* value = reinterpret_cast<E*>(values.data() + head * value_size);
        for (int64_t i = 0; i < c.m; i++) {
            int64_t panel = i / PANEL * words, place = i % PANEL, row = i / T::step * width, half = i % T::step;
            for (int64_t e = 0; e < c.d; e++) {
                key[((panel + e / T::step) * PANEL + place) * T::step + e % T::step] = k[i * c.k_n + e];
                value[(row + e) * T::step + half] = v[i * c.v_n + e];
            }
        }
    }

    // One query's scores against the first `valid` keys of a block become weights, 0 for the other columns.
    // factor: what everything summed before is multiplied with, now that the maximum may have grown.
    static void soften(const float* scores, E* weights, int64_t columns, int64_t valid, float scale, float& most,
                       float& sum, float& factor) {
        __m512 high = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
        for (int64_t j = 0; j < valid; j += 16)
            high = _mm512_mask_max_ps(high, first(valid - j), high, _mm512_loadu_ps(scores + j));
        float now = valid > 0 ? std::max(most, _mm512_reduce_max_ps(high) * scale) : most;
        factor = valid > 0 ? std::exp2(most - now) : 1.0f;
        __m512 total = _mm512_setzero_ps(), by = _mm512_set1_ps(scale), less = _mm512_set1_ps(now);
        for (int64_t j = 0; j < columns; j += 16) {
            __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(scores + j), by, less);
            __m512 y = _mm512_maskz_mov_ps(first(valid - j), exp2_of(x));
            total = _mm512_add_ps(total, y);
            T::store(weights + j, y);
        }
        most = now;
        sum = sum * factor + _mm512_reduce_add_ps(total);
    }

    struct Scratch {
        std::vector<Word> query, weights;
        std::vector<float> scores, out;
    };

    // out [rows, width] = factor * out + weights of the block's keys times their values
    void add_values(int64_t rows, const Word* value, int64_t columns, Scratch& s, const float* factor) const {
        for (int64_t e = 0; e < width;) {
            int64_t left = (width - e) / 16, vectors = left == 5 || left == 10 ? 5 : std::min<int64_t>(left, 4);
            for (int64_t w = 0; w < columns / T::step; w += CHUNK) {
                auto run = [&](auto function) {
                    function(rows, s.weights.data() + w, KEYS, value + w * width + e, width,
                             std::min(CHUNK, columns / T::step - w), s.out.data() + e, width, w ? ones : factor);
                };
                if (vectors == 5) run(strip<T, 4, 5>);
                else if (vectors == 4) run(strip<T, 6, 4>);
                else if (vectors == 3) run(strip<T, 8, 3>);
                else if (vectors == 2) run(strip<T, 8, 2>);
                else run(strip<T, 8, 1>);
            }
            e += 16 * vectors;
        }
    }

    void block(int64_t head, int64_t begin, Scratch& s) const {
        int64_t count = std::min(QUERIES, c.n - begin), rows = up(count, 24);
        const E* q = static_cast<const E*>(c.q) + head / c.h * c.q_b + head % c.h * c.d + begin * c.q_n;
        const Word* key = keys.data() + head * key_size;
        const Word* value = values.data() + head * value_size;
        const float scale = static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(c.d)));
        float most[QUERIES], sum[QUERIES] = {}, factor[QUERIES];
        std::fill(most, most + QUERIES, -std::numeric_limits<float>::infinity());
        s.query.assign(QUERIES * words, 0);
        s.out.assign(QUERIES * width, 0.0f);
        for (int64_t r = 0; r < count; r++) std::memcpy(&s.query[r * words], q + r * c.q_n, c.d * sizeof(E));
        int64_t end = c.causal ? std::min(c.m, begin + count) : c.m;
        for (int64_t start = 0; start < end; start += KEYS) {
            int64_t valid = std::min(KEYS, end - start), columns = up(valid, PANEL);
            for (int64_t p = 0; p < columns; p += PANEL)
                for (int64_t w = 0; w < words; w += CHUNK)
                    strip<T, 6, 4>(rows, s.query.data() + w, words, key + (start + p) * words + w * PANEL, PANEL,
                                   std::min(CHUNK, words - w), s.scores.data() + p, KEYS, w ? ones : nullptr);
            for (int64_t r = 0; r < rows; r++) {
                int64_t seen = c.causal ? std::clamp<int64_t>(begin + r + 1 - start, 0, valid) : valid;
                soften(&s.scores[r * KEYS], reinterpret_cast<E*>(&s.weights[r * KEYS]), columns, seen, scale, most[r],
                       sum[r], factor[r]);
            }
            add_values(rows, value + start / T::step * width, columns, s, factor);
        }
        E* out = static_cast<E*>(c.out) + head / c.h * c.o_b + head % c.h * c.d + begin * c.o_n;
        for (int64_t r = 0; r < count; r++)
            for (int64_t e = 0; e < c.d; e += 16) {
                __m512 x = _mm512_mul_ps(_mm512_loadu_ps(&s.out[r * width + e]), _mm512_set1_ps(1.0f / sum[r]));
                T::store(out + r * c.o_n + e, x, first(c.d - e));
            }
    }

    void run() {
        int64_t heads = c.b * c.h, blocks = up(c.n, QUERIES) / QUERIES;
        int64_t threads = heads * c.n * c.m * c.d < SERIAL ? 1 : c.threads;
        keys.assign(heads * key_size, 0);
        values.assign(heads * value_size, 0);
        share(heads, threads, [&](int64_t head) { pack(head); });
        share(heads * blocks, threads, [&](int64_t task) {
            thread_local Scratch scratch;
            scratch.weights.resize(QUERIES * KEYS);
            scratch.scores.resize(QUERIES * KEYS);
            block(task / blocks, task % blocks * QUERIES, scratch);
        });
    }
};

}  // namespace

extern "C" void attention_f32(const Call* call) { Attention<F32>{*call}.run(); }
extern "C" void attention_bf16(const Call* call) { Attention<BF16>{*call}.run(); }
