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

    // to[v] += Σ_p w_ip values_i, over the points and the vertices v of their corners.
    void splat(const T* values, T* to, Range range) const {
        for (int64_t i = range.begin; i < range.end; i++) {
            const int32_t* vertex = cell_vertices + int64_t(cell[i]) * corners;
            const T* w = weights + i * corners;
            if (channels == 1) {
                const T value = values[i];
                for (int p = 0; p < corners; p++) to[vertex[p]] += w[p] * value;
                continue;
            }
            for (int p = 0; p < corners; p++) add_scaled(to + vertex[p] * channels, w[p], values + i * channels, channels);
        }
    }

    // out_i = Σ_p w_ip from[v].
    void slice(const T* from, T* out, Range range) const {
        for (int64_t i = range.begin; i < range.end; i++) {
            const int32_t* vertex = cell_vertices + int64_t(cell[i]) * corners;
            const T* w = weights + i * corners;
            if (channels == 1) {
                T total = 0;
                for (int p = 0; p < corners; p++) total += w[p] * from[vertex[p]];
                out[i] = total;
                continue;
            }
            T* to = out + i * channels;
            std::fill_n(to, channels, T(0));
            for (int p = 0; p < corners; p++) add_scaled(to, w[p], from + vertex[p] * channels, channels);
        }
    }

    void filter(const T* values, T* out, int threads) const {
        // Each thread splats to vertices of its own. More memory than the values themselves take is not for that.
        const int64_t size = vertices * channels;
        threads = useful_threads(threads, points * channels * corners);
        threads = int(std::max<int64_t>(1, std::min<int64_t>(threads, 1 + points / std::max<int64_t>(1, vertices))));
        std::vector<Buffer<T>> splatted;
        for (int part = 0; part < threads; part++) splatted.emplace_back(size_t(size));
        Buffer<T> memory{size_t(size)};
        const int parts = threads;
        parallel(threads, [&](Team& team, int thread) {
            for (int part = thread; part < parts; part += team.threads) {
                T* to = splatted[size_t(part)].data();
                std::fill_n(to, size, T(0));
                splat(values, to, share(points, part, parts));
            }
            team.wait();
            const Range range = share(size, thread, team.threads);
            for (size_t part = 1; part < splatted.size(); part++)
                add_scaled(splatted[0].data() + range.begin, T(1), splatted[part].data() + range.begin, range.end - range.begin);
            const T* blurred =
                blur(team, thread, splatted[0].data(), memory.data(), links, vertices, axes, order, channels, scale, false);
            slice(blurred, out, share(points, thread, team.threads));
        });
    }
};

}  // namespace hdcrf
