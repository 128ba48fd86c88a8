// The whole filter c · S B_A … B_1 Sᵀ on values: the kernel of voxel/splat_blur_slice.py, without a matrix being made.

#pragma once

#include <algorithm>

#include "blur.hpp"

namespace hdcrf {

// to += weight · from
template <typename T>
inline void add_scaled(T* to, T weight, const T* from, int64_t channels) {
    int64_t c = 0;
    for (; c + lanes<T> <= channels; c += lanes<T>) store(to + c, load(to + c) + weight * load(from + c));
    for (; c < channels; c++) to[c] += weight * from[c];
}

template <typename T>
struct SplatBlurSlice {
    int64_t points, vertices, channels;
    int corners, axes, order;
    const int32_t* cell;           // (N,)
    const int32_t* cell_vertices;  // (M, P)
    const T* weights;              // (N, P)
    const int32_t* links;          // (A, V, 2)
    T scale;

    void filter(const T* values, T* out, int threads) const {
        // Each thread splats to vertices of its own. More memory than the values themselves take is not for that.
        const int64_t size = vertices * channels;
        threads = useful_threads(threads, points * channels * corners);
        threads = int(std::max<int64_t>(1, std::min<int64_t>(threads, 1 + points / std::max<int64_t>(1, vertices))));
        std::vector<Buffer<T>> splat;
        for (int part = 0; part < threads; part++) splat.emplace_back(size_t(size));
        Buffer<T> memory{size_t(size)};
        const int parts = threads;
        parallel(threads, [&](Team& team, int thread) {
            for (int part = thread; part < parts; part += team.threads) {
                T* to = splat[size_t(part)].data();
                std::fill_n(to, size, T(0));
                const Range range = share(points, part, parts);
                for (int64_t i = range.begin; i < range.end; i++) {
                    const int32_t* vertex = cell_vertices + int64_t(cell[i]) * corners;
                    for (int p = 0; p < corners; p++)
                        add_scaled(to + vertex[p] * channels, weights[i * corners + p], values + i * channels, channels);
                }
            }
            team.wait();
            const Range range = share(size, thread, team.threads);
            for (size_t part = 1; part < splat.size(); part++)
                add_scaled(splat[0].data() + range.begin, T(1), splat[part].data() + range.begin, range.end - range.begin);
            const T* blurred =
                blur(team, thread, splat[0].data(), memory.data(), links, vertices, axes, order, channels, scale, false);
            const Range mine = share(points, thread, team.threads);
            for (int64_t i = mine.begin; i < mine.end; i++) {
                T* to = out + i * channels;
                std::fill_n(to, channels, T(0));
                const int32_t* vertex = cell_vertices + int64_t(cell[i]) * corners;
                for (int p = 0; p < corners; p++)
                    add_scaled(to, weights[i * corners + p], blurred + vertex[p] * channels, channels);
            }
        });
    }
};

}  // namespace hdcrf
