// Operations over rows of channels: GroupNorm and SiLU of pixels (channels last), LayerNorm of tokens with the
// residual added before it, value * gelu(gate). Each is one pass over memory for what torch does in two or three.
#include "common.h"

#include <cmath>

namespace {

constexpr int64_t PART = 256;         // pixels whose sums are made by one task
constexpr int64_t VECTORS = 8;        // of 16 channels that are summed at a time
constexpr int64_t SERIAL = 1 << 15;   // elements: fewer are not worth another thread

__m512 silu(__m512 x) {
    __m512 e = exp_of(_mm512_sub_ps(_mm512_setzero_ps(), x));
    return _mm512_div_ps(x, _mm512_add_ps(e, _mm512_set1_ps(1.0f)));
}

// x Phi(x), with erf by formula 7.1.26 of Abramowitz and Stegun: absolute error 1.5e-7
__m512 gelu(__m512 x) {
    __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678118f)), one = _mm512_set1_ps(1.0f);
    __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), one));
    __m512 y = _mm512_set1_ps(1.061405429f);
    for (float term : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f})
        y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(term));
    __m512 tail = _mm512_mul_ps(_mm512_mul_ps(y, t), exp_of(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(z, z))));
    __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    // 1 + erf: 2 - tail on the right, tail on the left, where a difference from 2 would lose its digits
    __m512 both = _mm512_mask_mov_ps(_mm512_sub_ps(_mm512_set1_ps(2.0f), tail), negative, tail);
    return _mm512_mul_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.5f)), both);
}

struct NormCall {
    const void *x, *weight, *bias;
    void* out;
    int64_t b, n, c, groups, silu, threads;  // images of n pixels and c channels, one behind the other
    double eps;
};

template <class T>
struct GroupNorm {
    using E = typename T::Element;
    const NormCall& c;
    const E* x = static_cast<const E*>(c.x);

    // Sums of (x - shift) and of its square, per channel, over one part of an image. shift: the image's first
    // pixel, so that nothing cancels where a channel's mean is far larger than its spread.
    void sums(const E* image, int64_t begin, float* sum, float* square) const {
        int64_t end = std::min(c.n, begin + PART);
        for (int64_t j = 0; j < c.c; j += 16 * VECTORS) {
            int64_t vectors = std::min<int64_t>(VECTORS, (c.c - j + 15) / 16);
            __m512 s[VECTORS], q[VECTORS], shift[VECTORS];
            for (int64_t v = 0; v < vectors; v++) {
                s[v] = q[v] = _mm512_setzero_ps();
                shift[v] = T::load(image + j + 16 * v, first(c.c - j - 16 * v));
            }
            for (int64_t i = begin; i < end; i++)
                for (int64_t v = 0; v < vectors; v++) {
                    __m512 y = T::load(image + i * c.c + j + 16 * v, first(c.c - j - 16 * v));
                    y = _mm512_sub_ps(y, shift[v]);
                    s[v] = _mm512_add_ps(s[v], y);
                    q[v] = _mm512_fmadd_ps(y, y, q[v]);
                }
            for (int64_t v = 0; v < vectors; v++) {
                _mm512_mask_storeu_ps(sum + j + 16 * v, first(c.c - j - 16 * v), s[v]);
                _mm512_mask_storeu_ps(square + j + 16 * v, first(c.c - j - 16 * v), q[v]);
            }
        }
    }

    // y = scale x + shift of every channel, from the parts' sums in their order
    void merge(const E* image, const float* parts, int64_t count, float* scale, float* shift) const {
        std::vector<double> mean(c.c), spread(c.c);
        std::vector<float> start(c.c);
        for (int64_t j = 0; j < c.c; j += 16)
            _mm512_mask_storeu_ps(&start[j], first(c.c - j), T::load(image + j, first(c.c - j)));
        for (int64_t p = 0; p < count; p++)
            for (int64_t j = 0; j < c.c; j++) {
                mean[j] += parts[2 * p * c.c + j];
                spread[j] += parts[(2 * p + 1) * c.c + j];
            }
        const double n = static_cast<double>(c.n);
        const int64_t width = c.c / c.groups;
        for (int64_t g = 0; g < c.groups; g++) {
            double middle = 0.0, variance = 0.0;
            for (int64_t j = g * width; j < (g + 1) * width; j++) {
                spread[j] -= mean[j] * mean[j] / n;  // squares about the channel's own mean
                mean[j] = mean[j] / n + start[j];
                middle += mean[j] / width;
            }
            for (int64_t j = g * width; j < (g + 1) * width; j++)
                variance += (spread[j] / n + (mean[j] - middle) * (mean[j] - middle)) / width;
            for (int64_t j = g * width; j < (g + 1) * width; j++) {
                double by = value(c.weight, j) / std::sqrt(variance + c.eps);
                scale[j] = static_cast<float>(by);
                shift[j] = static_cast<float>(value(c.bias, j) - middle * by);
            }
        }
    }

    static float value(const void* from, int64_t at) {
        return _mm512_cvtss_f32(T::load(static_cast<const E*>(from) + at, 1));
    }

    void apply(const E* image, E* out, int64_t begin, const float* scale, const float* shift) const {
        for (int64_t i = begin; i < std::min(c.n, begin + PART); i++)
            for (int64_t j = 0; j < c.c; j += 16) {
                __mmask16 mask = first(c.c - j);
                __m512 y = _mm512_fmadd_ps(T::load(image + i * c.c + j, mask), _mm512_maskz_loadu_ps(mask, scale + j),
                                           _mm512_maskz_loadu_ps(mask, shift + j));
                T::store(out + i * c.c + j, c.silu ? silu(y) : y, mask);
            }
    }

    void run() const {
        int64_t parts = (c.n + PART - 1) / PART, size = c.n * c.c, threads = c.b * size < SERIAL ? 1 : c.threads;
        std::vector<float> made(c.b * parts * 2 * c.c), scales(c.b * 2 * c.c);
        E* out = static_cast<E*>(c.out);
        share(c.b * parts, threads, [&](int64_t t) {
            float* own = &made[t * 2 * c.c];
            sums(x + t / parts * size, t % parts * PART, own, own + c.c);
        });
        share(c.b, threads, [&](int64_t b) {
            float* own = &scales[b * 2 * c.c];
            merge(x + b * size, &made[b * parts * 2 * c.c], parts, own, own + c.c);
        });
        share(c.b * parts, threads, [&](int64_t t) {
            const float* own = &scales[t / parts * 2 * c.c];
            apply(x + t / parts * size, out + t / parts * size, t % parts * PART, own, own + c.c);
        });
    }
};

struct RowCall {
    const void *x, *other, *weight, *bias;  // other: the residual, or null
    void *sum, *out;
    int64_t n, d, threads;  // rows of width d
    double eps;
};

constexpr int64_t ROWS = 16;  // of one task

// sum = x + other (rounded as it is stored), out = LayerNorm(sum)
template <class T>
void layer_norm(const RowCall& c) {
    using E = typename T::Element;
    const E *weight = static_cast<const E*>(c.weight), *bias = static_cast<const E*>(c.bias);
    share((c.n + ROWS - 1) / ROWS, c.n * c.d < SERIAL ? 1 : c.threads, [&](int64_t task) {
        for (int64_t i = task * ROWS; i < std::min(c.n, (task + 1) * ROWS); i++) {
            const E* x = static_cast<const E*>(c.x) + i * c.d;
            if (c.other) {
                const E* other = static_cast<const E*>(c.other) + i * c.d;
                E* sum = static_cast<E*>(c.sum) + i * c.d;
                for (int64_t j = 0; j < c.d; j += 16) {
                    __mmask16 mask = first(c.d - j);
                    T::store(sum + j, _mm512_add_ps(T::load(x + j, mask), T::load(other + j, mask)), mask);
                }
                x = sum;
            }
            __m512 total = _mm512_setzero_ps(), square = _mm512_setzero_ps();
            for (int64_t j = 0; j < c.d; j += 16) total = _mm512_add_ps(total, T::load(x + j, first(c.d - j)));
            float mean = _mm512_reduce_add_ps(total) / c.d;
            for (int64_t j = 0; j < c.d; j += 16) {
                __mmask16 mask = first(c.d - j);
                __m512 y = _mm512_maskz_sub_ps(mask, T::load(x + j, mask), _mm512_set1_ps(mean));
                square = _mm512_fmadd_ps(y, y, square);
            }
            float by = 1.0f / std::sqrt(_mm512_reduce_add_ps(square) / c.d + static_cast<float>(c.eps));
            for (int64_t j = 0; j < c.d; j += 16) {
                __mmask16 mask = first(c.d - j);
                __m512 y = _mm512_sub_ps(T::load(x + j, mask), _mm512_set1_ps(mean));
                y = _mm512_fmadd_ps(_mm512_mul_ps(y, _mm512_set1_ps(by)), T::load(weight + j, mask),
                                    T::load(bias + j, mask));
                T::store(static_cast<E*>(c.out) + i * c.d + j, y, mask);
            }
        }
    });
}

// out [n, d] = left half * gelu(right half) of x [n, 2 d]
template <class T>
void geglu(const RowCall& c) {
    using E = typename T::Element;
    share((c.n + ROWS - 1) / ROWS, c.n * c.d < SERIAL ? 1 : c.threads, [&](int64_t task) {
        for (int64_t i = task * ROWS; i < std::min(c.n, (task + 1) * ROWS); i++) {
            const E* x = static_cast<const E*>(c.x) + i * 2 * c.d;
            for (int64_t j = 0; j < c.d; j += 16) {
                __mmask16 mask = first(c.d - j);
                __m512 y = _mm512_mul_ps(T::load(x + j, mask), gelu(T::load(x + c.d + j, mask)));
                T::store(static_cast<E*>(c.out) + i * c.d + j, y, mask);
            }
        }
    });
}

}  // namespace

extern "C" void group_norm_f32(const NormCall* call) { GroupNorm<F32>{*call}.run(); }
extern "C" void group_norm_bf16(const NormCall* call) { GroupNorm<BF16>{*call}.run(); }
extern "C" void layer_norm_f32(const RowCall* call) { layer_norm<F32>(*call); }
extern "C" void layer_norm_bf16(const RowCall* call) { layer_norm<BF16>(*call); }
extern "C" void geglu_f32(const RowCall* call) { geglu<F32>(*call); }
extern "C" void geglu_bf16(const RowCall* call) { geglu<BF16>(*call); }
