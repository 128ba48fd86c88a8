// How far features reach: whether lattice coordinates can hold them, and how many different keys these need.

#pragma once

#include <algorithm>

#include "threads.hpp"
#include "vectors.hpp"

namespace hdcrf {

// Feature j of point i is data[i * point_stride + j * feature_stride].
template <typename T>
struct Points {
    const T* data;
    int64_t count;
    int dimension;
    int64_t point_stride, feature_stride;
};

// The least and the largest of feature j among some points.
template <typename T>
void extent_of_column(const Points<T>& features, int j, Range range, T& low, T& high) {
    const T* from = features.data + j * features.feature_stride;
    const int64_t stride = features.point_stride;
    low = high = from[range.begin * stride];
    int64_t i = range.begin;
    if (stride == 1) {
        Vector<T> lows = broadcast(low), highs = lows;
        for (; i + lanes<T> <= range.end; i += lanes<T>) {
            const Vector<T> value = load(from + i);
            lows = value < lows ? value : lows;
            highs = value > highs ? value : highs;
        }
        for (int lane = 0; lane < lanes<T>; lane++) {
            low = std::min(low, T(lows[lane]));
            high = std::max(high, T(highs[lane]));
        }
    }
    for (; i < range.end; i++) {
        low = std::min(low, from[i * stride]);
        high = std::max(high, from[i * stride]);
    }
}

// The same for all features, where those of a point follow one another. As many points as a vector has lanes fill
// `dimension` vectors, in which feature j is at j, j + dimension and so on.
template <typename T>
void extents_of_rows(const Points<T>& features, Range range, T* low, T* high) {
    const int dimension = features.dimension;
    const T* from = features.data + range.begin * dimension;
    const int64_t blocks = (range.end - range.begin) / lanes<T>;
    std::copy_n(from, dimension, low);
    std::copy_n(from, dimension, high);
    for (int v = 0; v < dimension && blocks; v++) {
        Vector<T> lows = load(from + v * lanes<T>), highs = lows;
        for (int64_t block = 1; block < blocks; block++) {
            const Vector<T> value = load(from + (block * dimension + v) * lanes<T>);
            lows = value < lows ? value : lows;
            highs = value > highs ? value : highs;
        }
        for (int lane = 0; lane < lanes<T>; lane++) {
            const int j = (v * lanes<T> + lane) % dimension;
            low[j] = std::min(low[j], T(lows[lane]));
            high[j] = std::max(high[j], T(highs[lane]));
        }
    }
    for (int64_t i = range.begin + blocks * lanes<T>; i < range.end; i++)
        for (int j = 0; j < dimension; j++) {
            low[j] = std::min(low[j], features.data[i * dimension + j]);
            high[j] = std::max(high[j], features.data[i * dimension + j]);
        }
}

// The least and the largest of each feature of one point at least, all finite: low and high (d,).
template <typename T>
void extents(const Points<T>& features, T* low, T* high, int threads) {
    const size_t d = size_t(features.dimension);
    const bool rows = features.feature_stride == 1 && features.point_stride == features.dimension;
    const int64_t wanted = useful_threads(threads, features.count * features.dimension, 1 << 18);
    const int parts = int(std::min(features.count, wanted));
    Buffer<T> lows(d * size_t(parts)), highs(d * size_t(parts));
    parallel(parts, [&](Team& team, int thread) {
        for (int part = thread; part < parts; part += team.threads) {
            const Range range = share(features.count, part, parts);
            T *const from = lows.data() + size_t(part) * d, *const to = highs.data() + size_t(part) * d;
            if (rows)
                extents_of_rows(features, range, from, to);
            else
                for (int j = 0; j < features.dimension; j++) extent_of_column(features, j, range, from[j], to[j]);
        }
    });
    for (size_t j = 0; j < d; j++) {
        low[j] = lows[j];
        high[j] = highs[j];
        for (size_t part = 1; part < size_t(parts); part++) {
            low[j] = std::min(low[j], lows[part * d + j]);
            high[j] = std::max(high[j], highs[part * d + j]);
        }
    }
}

}  // namespace hdcrf
