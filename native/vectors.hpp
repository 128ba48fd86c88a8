// Vectors of 32 bytes, by the compiler's own vector types: AVX2 on x86-64, pairs of NEON registers on aarch64.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace hdcrf {

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
    typedef float type __attribute__((vector_size(32)));
    typedef float unaligned __attribute__((vector_size(32), aligned(4), may_alias));
    typedef int32_t integers __attribute__((vector_size(32)));
    typedef uint32_t unsigned_integers __attribute__((vector_size(32)));
};
template <>
struct VectorOf<double> {
    typedef double type __attribute__((vector_size(32)));
    typedef double unaligned __attribute__((vector_size(32), aligned(8), may_alias));
    typedef int64_t integers __attribute__((vector_size(32)));
    typedef uint64_t unsigned_integers __attribute__((vector_size(32)));
};

template <typename T>
using Vector = typename VectorOf<T>::type;
template <typename T>
using Integers = typename VectorOf<T>::integers;
template <typename T>
using Unsigned = typename VectorOf<T>::unsigned_integers;

template <typename T>
constexpr int lanes = int(32 / sizeof(T));

template <typename T>
inline Vector<T> load(const T* from) {
    return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(from);
}

template <typename T>
inline void store(T* to, Vector<T> value) {
    *reinterpret_cast<typename VectorOf<T>::unaligned*>(to) = value;
}

template <typename T>
inline Vector<T> broadcast(T value) {
    return value - Vector<T>{};
}

// The first `count` entries, and zeros.
template <typename T>
inline Vector<T> load_some(const T* from, int count) {
    if (count == lanes<T>) return load(from);
    Vector<T> value{};
    std::memcpy(&value, from, sizeof(T) * size_t(count));
    return value;
}

// 0, 1, 2, …
template <typename T>
inline Integers<T> lane_numbers() {
    Integers<T> lane;
    for (int i = 0; i < lanes<T>; i++) lane[i] = i;
    return lane;
}

// The first `count` entries, and zeros, of `room` that may be read.
template <typename T>
inline Vector<T> load_first(const T* from, int count, int64_t room) {
    if (count == lanes<T>) return load(from);
    if (room < lanes<T>) return load_some(from, count);
    return lane_numbers<T>() < count ? load(from) : Vector<T>{};
}

template <typename T>
inline void store_some(T* to, Vector<T> value, int count) {
    if (count == lanes<T>) return store(to, value);
    std::memcpy(to, &value, sizeof(T) * size_t(count));
}

template <typename T>
inline Vector<T> larger(Vector<T> a, Vector<T> b) {
    return a > b ? a : b;
}

inline float sum(Vector<float> v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}
inline double sum(Vector<double> v) { return (v[0] + v[2]) + (v[1] + v[3]); }

// The lanes of a and b, numbered through, that `lanes` names.
template <typename T, int... lanes>
inline Vector<T> shuffled(Vector<T> a, Vector<T> b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, lanes...);
#else  // which GCC has had for longer
    return __builtin_shuffle(a, b, Integers<T>{lanes...});
#endif
}

// For as many vectors as one has lanes: what `two` makes of all lanes of each, one result a lane. In three rounds (two,
// of double) of the pairs of vectors, so that a vector costs an operation and not one a lane.
template <typename T, typename Two>
inline Vector<T> across(const T* vectors, const Two& two) {
    Vector<T> v[lanes<T>];
    for (int i = 0; i < lanes<T>; i++) v[i] = load(vectors + i * lanes<T>);
    if constexpr (lanes<T> == 8) {
        for (int i = 0; i < 4; i++) {
            const Vector<T> a = v[2 * i], b = v[2 * i + 1];
            v[i] = two(
                shuffled<T, 0, 8, 2, 10, 4, 12, 6, 14>(a, b),
                shuffled<T, 1, 9, 3, 11, 5, 13, 7, 15>(a, b)
            );
        }
        for (int i = 0; i < 2; i++) {
            const Vector<T> a = v[2 * i], b = v[2 * i + 1];
            v[i] = two(
                shuffled<T, 0, 1, 8, 9, 4, 5, 12, 13>(a, b),
                shuffled<T, 2, 3, 10, 11, 6, 7, 14, 15>(a, b)
            );
        }
        return two(
            shuffled<T, 0, 1, 2, 3, 8, 9, 10, 11>(v[0], v[1]),
            shuffled<T, 4, 5, 6, 7, 12, 13, 14, 15>(v[0], v[1])
        );
    } else {
        for (int i = 0; i < 2; i++) {
            const Vector<T> a = v[2 * i], b = v[2 * i + 1];
            v[i] = two(shuffled<T, 0, 4, 2, 6>(a, b), shuffled<T, 1, 5, 3, 7>(a, b));
        }
        return two(shuffled<T, 0, 1, 4, 5>(v[0], v[1]), shuffled<T, 2, 3, 6, 7>(v[0], v[1]));
    }
}

// As many vectors as one has lanes, as a square matrix: lane j of vector i changes places with lane i of vector j.
template <typename T>
inline void transpose(Vector<T>* v) {
    // Halves of vectors, then halves of those, change places between two vectors as far apart as they are.
    if constexpr (lanes<T> == 8) {
        for (int i = 0; i < 4; i++) {
            const Vector<T> a = v[i], b = v[i + 4];
            v[i] = shuffled<T, 0, 1, 2, 3, 8, 9, 10, 11>(a, b);
            v[i + 4] = shuffled<T, 4, 5, 6, 7, 12, 13, 14, 15>(a, b);
        }
        for (int i : {0, 1, 4, 5}) {
            const Vector<T> a = v[i], b = v[i + 2];
            v[i] = shuffled<T, 0, 1, 8, 9, 4, 5, 12, 13>(a, b);
            v[i + 2] = shuffled<T, 2, 3, 10, 11, 6, 7, 14, 15>(a, b);
        }
        for (int i : {0, 2, 4, 6}) {
            const Vector<T> a = v[i], b = v[i + 1];
            v[i] = shuffled<T, 0, 8, 2, 10, 4, 12, 6, 14>(a, b);
            v[i + 1] = shuffled<T, 1, 9, 3, 11, 5, 13, 7, 15>(a, b);
        }
    } else {
        for (int i : {0, 1}) {
            const Vector<T> a = v[i], b = v[i + 2];
            v[i] = shuffled<T, 0, 1, 4, 5>(a, b);
            v[i + 2] = shuffled<T, 2, 3, 6, 7>(a, b);
        }
        for (int i : {0, 2}) {
            const Vector<T> a = v[i], b = v[i + 1];
            v[i] = shuffled<T, 0, 4, 2, 6>(a, b);
            v[i + 1] = shuffled<T, 1, 5, 3, 7>(a, b);
        }
    }
}

// e^x. In single precision for x up to 88, with a relative error below 3e-7: x = n ln 2 + r with |r| ≤ ½ ln 2, and
// e^r by its Taylor series to r⁶; below -87 the result is about 1e-38 rather than smaller.
inline Vector<float> exponential(Vector<float> x) {
    const Vector<float> lowest = broadcast(-87.0f);
    x = x > lowest ? x : lowest;
    const float shift = 12582912.0f;  // 1.5 · 2²³: adding it rounds to an integer
    const Vector<float> shifted = x * 1.44269504088896341f + shift;
    const Vector<float> n = shifted - shift;
    Vector<float> r = x - n * 0.693359375f;  // ln 2 in two parts, the first exact in few bits
    r = r + n * 2.12194440e-4f;
    Vector<float> p = broadcast(1.0f / 720);
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const Integers<float> bits = (Integers<float>)shifted << 23;
    return (Vector<float>)((Integers<float>)p + bits);
}
inline Vector<double> exponential(Vector<double> x) {
    for (int i = 0; i < lanes<double>; i++) x[i] = std::exp(x[i]);
    return x;
}

}  // namespace hdcrf
