// What the AVX-512 kernels share: two element types, exponentials, and work handed to threads.
//
// Whatever is computed by one task is computed by one thread in one order, and tasks do not depend on the number of
// threads, so that neither do the bits.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

using Word = uint32_t;  // one float32, or two bfloat16 that are next to each other in a sum

__mmask16 first(int64_t count) { return count >= 16 ? 0xffff : count > 0 ? (1u << count) - 1 : 0; }

struct F32 {
    using Element = float;
    static constexpr int64_t step = 1;  // elements in a word
    static __m512 dot(__m512 sum, __m512i a, __m512i b) {
        return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
    }
    static __m512 load(const float* from, __mmask16 mask = 0xffff) { return _mm512_maskz_loadu_ps(mask, from); }
    static void store(float* to, __m512 x, __mmask16 mask = 0xffff) { _mm512_mask_storeu_ps(to, mask, x); }
};

struct BF16 {
    using Element = uint16_t;
    static constexpr int64_t step = 2;
    static __m512 dot(__m512 sum, __m512i a, __m512i b) {
        return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
    }
    static __m512 load(const uint16_t* from, __mmask16 mask = 0xffff) {
        __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
        return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
    static void store(uint16_t* to, __m512 x, __mmask16 mask = 0xffff) {
        _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(x));
    }
};

// 2^x to 2 ulp: the nearest integer n, and Taylor's polynomial of degree 6 for the rest in [-1/2, 1/2]
inline __m512 exp2_of(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-200.0f));
    __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_sub_ps(x, n);
    __m512 y = _mm512_set1_ps(1.5403530394e-4f);
    const float terms[] = {1.3333558146e-3f, 9.6181291076e-3f, 5.5504108665e-2f,
                           2.4022650696e-1f, 6.9314718056e-1f, 1.0f};
    for (float term : terms) y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(term));
    return _mm512_scalef_ps(y, n);
}

inline __m512 exp_of(__m512 x) { return exp2_of(_mm512_mul_ps(x, _mm512_set1_ps(1.4426950408889634f))); }

// work(task) for every task, by this thread and others
template <class Work>
void share(int64_t tasks, int64_t threads, Work work) {
    std::atomic<int64_t> next{0};
    auto loop = [&] {
        for (int64_t task; (task = next++) < tasks;) work(task);
    };
    std::vector<std::thread> others;
    for (int64_t i = 1; i < std::min(threads, tasks); i++) others.emplace_back(loop);
    loop();
    for (auto& other : others) other.join();
}

}  // namespace
