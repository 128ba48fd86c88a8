// The whole filter L · c S B_A … B_1 Sᵀ · R on values, its adjoint, and its gradient with respect to the weights in S:
// the kernel of voxel/splat_blur_slice.py, without a matrix being made.

#pragma once

#include <algorithm>

#include "blur.hpp"

namespace hdcrf {

template <typename T>
struct SplatBlurSlice {
    int64_t points, vertices, channels;
    int corners, axes, order;
    const int32_t* cell;           // (N,)
    const int32_t* cell_vertices;  // (M, P)
    const T* weights;              // (N, P)
    const int32_t* links;          // (A, V, 2)
    T scale;
    bool adjoint = false;

    // out = L c S B Sᵀ R values, or with Bᵀ for the adjoint; `left` and `right` (N,) or null for ones.
    void filter(const T* values, const T* left, const T* right, T* out, int threads) const {
        Vertices on(*this, threads, 1);
        parallel(on.parts, [&](Team& team, int thread) {
            const T* blurred = blurred_splat(team, thread, on, 0, values, right, adjoint);
            const Range range = share(points, thread, team.threads);
            for (int64_t i = range.begin; i < range.end; i++) slice_point(blurred, i, left, out, range.end);
        });
    }

    // out = c S ½ (B + Bᵀ) Sᵀ values: one splat, the blur both ways, one slice.
    void symmetric_filter(const T* values, T* out, int threads) const {
        Vertices on(*this, threads, 2);
        parallel(on.parts, [&](Team& team, int thread) {
            T* const once = splat(team, thread, on, 0, values, nullptr);
            T* const again = on.splatted[1][0].data();
            const Range own = share(vertices * stride(), thread, team.threads);
            std::copy(once + own.begin, once + own.end, again + own.begin);
            T* const ahead = blurred(team, thread, on, 0, once, T(0.5) * scale, false);
            const T* const back = blurred(team, thread, on, 1, again, T(0.5) * scale, true);
            for (int64_t i = own.begin; i < own.end; i++) ahead[i] += back[i];
            team.wait();
            const Range range = share(points, thread, team.threads);
            for (int64_t i = range.begin; i < range.end; i++) slice_point(ahead, i, nullptr, out, range.end);
        });
    }

    // The gradient of ⟨gradient, filter(values)⟩ with respect to the weights: (N, P).
    void weights_gradient(
        const T* values, const T* gradient, const T* left, const T* right, T* out, int threads
    ) const {
        Vertices on(*this, threads, 2);
        parallel(on.parts, [&](Team& team, int thread) {
            const T* y = blurred_splat(team, thread, on, 0, values, right, adjoint);
            const T* z = blurred_splat(team, thread, on, 1, gradient, left, !adjoint);
            const Range range = share(points, thread, team.threads);
            for (int64_t i = range.begin; i < range.end; i++) {
                const int32_t* vertex = cell_vertices + int64_t(cell[i]) * corners;
                for (int p = 0; p < corners; p++) {
                    const T sliced = inner(gradient, i, y + vertex[p] * stride());
                    const T splatted = inner(values, i, z + vertex[p] * stride());
                    out[i * corners + p] = (left ? left[i] : T(1)) * sliced + (right ? right[i] : T(1)) * splatted;
                }
            }
        });
    }

private:
    // Numbers a vertex takes: whole vectors, but for a single channel.
    int64_t stride() const { return channels == 1 ? 1 : (channels + lanes<T> - 1) / lanes<T> * lanes<T>; }

    // Memory for values of the vertices: each thread splats to its own.
    struct Vertices {
        int parts;
        std::vector<std::vector<Buffer<T>>> splatted;
        std::vector<Buffer<T>> blurred;

        Vertices(const SplatBlurSlice& filter, int threads, int sets) {
            parts = useful_threads(threads, filter.points * filter.channels * filter.corners);
            parts = fitting_threads(parts, filter.points, filter.vertices);
            const size_t size = size_t(filter.vertices * filter.stride());
            for (int set = 0; set < sets; set++) {
                splatted.emplace_back();
                for (int part = 0; part < parts; part++) splatted.back().emplace_back(size);
                blurred.emplace_back(size);
            }
        }
    };

    // c B Sᵀ F values, for all threads of the team.
    const T* blurred_splat(
        Team& team, int thread, Vertices& on, int set, const T* values, const T* factor, bool transposed
    ) const {
        return blurred(team, thread, on, set, splat(team, thread, on, set, values, factor), scale, transposed);
    }

    // Sᵀ F values: each thread has its own share of the vertices' sums when it returns.
    T* splat(Team& team, int thread, Vertices& on, int set, const T* values, const T* factor) const {
        const int64_t size = vertices * stride();
        auto& splatted = on.splatted[size_t(set)];
        // Work for as many threads as there are parts; fewer may have come.
        for (int part = thread; part < on.parts; part += team.threads) {
            T* to = splatted[size_t(part)].data();
            std::fill_n(to, size, T(0));
            const Range range = share(points, part, on.parts);
            for (int64_t i = range.begin; i < range.end; i++) splat_point(values, i, factor, to);
        }
        team.wait();
        const Range range = share(size, thread, team.threads);
        T* const sums = splatted[0].data();
        for (size_t part = 1; part < splatted.size(); part++) {
            const T* more = splatted[part].data();
            for (int64_t i = range.begin; i < range.end; i++) sums[i] += more[i];
        }
        return sums;
    }

    // `times` B `sums`, in their memory or that of the set.
    T* blurred(Team& team, int thread, Vertices& on, int set, T* sums, T times, bool transposed) const {
        T* const other = on.blurred[size_t(set)].data();
        return blur(team, thread, sums, other, links, vertices, axes, order, stride(), times, transposed);
    }

    // The vectors of a point's values from channel c on, `wide` of them; zeros beyond the last channel.
    template <int wide>
    void load_point(const T* values, int64_t i, int64_t c, Vector<T>* to) const {
        const int64_t place = i * channels + c, last = (wide - 1) * lanes<T>;
        const int count = int(std::min<int64_t>(lanes<T>, channels - c - last));
        for (int v = 0; v < wide - 1; v++) to[v] = load(values + place + v * lanes<T>);
        to[wide - 1] = load_first(values + place + last, count, points * channels - place - last);
    }

    // Call function<number of vectors>(first channel) for all channels, at most four vectors at once.
    template <typename Function>
    void for_channels(const Function& function) const {
        for (int64_t c = 0; c < channels; c += 4 * lanes<T>) {
            switch (std::min<int64_t>(4, (channels - c + lanes<T> - 1) / lanes<T>)) {
                case 1: function(std::integral_constant<int, 1>(), c); break;
                case 2: function(std::integral_constant<int, 2>(), c); break;
                case 3: function(std::integral_constant<int, 3>(), c); break;
                default: function(std::integral_constant<int, 4>(), c);
            }
        }
    }

    void splat_point(const T* values, int64_t i, const T* factor, T* to) const {
        const int32_t* vertex = cell_vertices + int64_t(cell[i]) * corners;
        const T* w = weights + i * corners;
        const T f = factor ? factor[i] : T(1);
        if (channels == 1) {
            const T value = f * values[i];
            each_corner(corners, [&](int p) { to[vertex[p]] += w[p] * value; });
            return;
        }
        for_channels([&](auto wide, int64_t c) {
            Vector<T> value[wide];
            load_point<wide>(values, i, c, value);
            for (int v = 0; v < wide; v++) value[v] *= f;
            for (int p = 0; p < corners; p++) {
                T* row = to + vertex[p] * stride() + c;
                for (int v = 0; v < wide; v++) store(row + v * lanes<T>, load(row + v * lanes<T>) + w[p] * value[v]);
            }
        });
    }

    // May write beyond the point's own channels, which the next point then overwrites, but not from point `end` on.
    void slice_point(const T* from, int64_t i, const T* factor, T* out, int64_t end) const {
        const int32_t* vertex = cell_vertices + int64_t(cell[i]) * corners;
        const T* w = weights + i * corners;
        const T f = factor ? factor[i] : T(1);
        if (channels == 1) {
            T total = 0;
            each_corner(corners, [&](int p) { total += w[p] * from[vertex[p]]; });
            out[i] = f * total;
            return;
        }
        for_channels([&](auto wide, int64_t c) {
            Vector<T> total[wide] = {};
            for (int p = 0; p < corners; p++) {
                const T* row = from + vertex[p] * stride() + c;
                for (int v = 0; v < wide; v++) total[v] += w[p] * load(row + v * lanes<T>);
            }
            const int64_t place = i * channels + c;
            for (int v = 0; v < wide; v++) {
                const int64_t at = place + v * lanes<T>;
                if (at + lanes<T> <= end * channels)
                    store(out + at, f * total[v]);
                else
                    store_some(out + at, f * total[v], int(std::min<int64_t>(lanes<T>, end * channels - at)));
            }
        });
    }

    // ⟨values of point i, values of a vertex⟩.
    T inner(const T* values, int64_t i, const T* row) const {
        if (channels == 1) return values[i] * row[0];
        Vector<T> total{};
        for_channels([&](auto wide, int64_t c) {
            Vector<T> value[wide];
            load_point<wide>(values, i, c, value);
            for (int v = 0; v < wide; v++) total += value[v] * load(row + c + v * lanes<T>);
        });
        return sum(total);
    }
};

}  // namespace hdcrf
