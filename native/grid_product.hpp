// Products with the terms between neighbours of a grid: the kernel of hdcrf/gaussian/grid_terms.py.

#pragma once

#include <algorithm>

#include "threads.hpp"
#include "vectors.hpp"

namespace hdcrf {

// For an offset (dy, dx) each, the (labels, labels) blocks that couple a pixel with the one at that offset. An entry is
// read once, and serves the pixel and its neighbour: products are bound by the memory that the entries take.
template <typename T>
struct GridProduct {
    const T* weights;        // (batch, number, labels, labels, height, width)
    const int64_t* offsets;  // (number, 2), with dy ≥ 0
    int64_t batch, number, labels, height, width;

    // out = A v for (batch, count, labels, height, width) vectors.
    void run(const T* vectors, T* out, int64_t count, int threads) const {
        const int64_t entries = batch * number * labels * labels * plane();
        parallel(useful_threads(threads, entries * count), [&](Team& team, int thread) {
            const Range rows = share(batch * height, thread, team.threads);
            for (int64_t item = 0; item < batch; item++) {
                const int64_t size = count * labels * plane();
                const Range own{
                    std::max<int64_t>(rows.begin - item * height, 0), std::min(rows.end - item * height, height)
                };
                if (own.begin < own.end)
                    run_rows(weights + item * (entries / batch), vectors + item * size, out + item * size, count, own);
            }
        });
    }

private:
    struct Offset {
        int64_t dy, dx;
    };

    int64_t plane() const { return height * width; }

    // The rows `own` of the result: only these are written to, so that threads need not wait for each other.
    void run_rows(const T* of, const T* vectors, T* out, int64_t count, Range own) const {
        for (int64_t channel = 0; channel < count * labels; channel++) {
            T* target = out + channel * plane();
            std::fill(target + own.begin * width, target + own.end * width, T(0));
        }
        // Few rows at a time, so that a few planes of the vectors stay in the nearest cache: about 8 KiB of each.
        const int64_t some = std::max<int64_t>(1, 8192 / (int64_t(sizeof(T)) * width));
        for (int64_t begin = own.begin; begin < own.end; begin += some) {
            const int64_t end = std::min(begin + some, own.end);
            for (int64_t e = 0; e < number; e++) {
                const Offset offset{offsets[2 * e], offsets[2 * e + 1]};
                const T* blocks = of + e * labels * labels * plane();
                const int64_t inside = own.end - offset.dy;  // neighbours of rows from here on are not its own
                if (begin == own.begin)
                    couple<false, true>(blocks, vectors, out, count, offset,
                                        {std::max<int64_t>(begin - offset.dy, 0), std::min(begin, inside)});
                couple<true, true>(blocks, vectors, out, count, offset, {begin, std::min(end, inside)});
                couple<true, false>(blocks, vectors, out, count, offset,
                                    {std::max(begin, inside), std::min(end, height - offset.dy)});
            }
        }
    }

    // The pixels of some rows with their neighbours at one offset: adds to the pixels what comes from the neighbours
    // (`to_here`), and the other way round (`to_there`).
    template <bool to_here, bool to_there>
    void couple(const T* blocks, const T* vectors, T* out, int64_t count, Offset offset, Range rows) const {
        if (rows.begin >= rows.end) return;
        for (int64_t m = 0; m < labels; m++) {
            const T* block = blocks + m * labels * plane();
            int64_t n = 0;
            for (; n + 4 <= labels; n += 4)
                couple_labels<4, to_here, to_there>(block, vectors, out, count, offset, rows, m, n);
            for (; n < labels; n++)
                couple_labels<1, to_here, to_there>(block, vectors, out, count, offset, rows, m, n);
        }
    }

    template <int some, bool to_here, bool to_there>
    void couple_labels(
        const T* block, const T* vectors, T* out, int64_t count, Offset offset, Range rows, int64_t m, int64_t n
    ) const {
        // Whole rows are one run where no neighbour lies beyond the side.
        const int64_t left = std::max<int64_t>(-offset.dx, 0), right = std::max<int64_t>(offset.dx, 0);
        const int64_t length = offset.dx ? width - left - right : width * (rows.end - rows.begin);
        const int64_t last = offset.dx ? rows.end : rows.begin + 1;
        // In one row of one label, what is added to pixels and to neighbours overlaps: one after the other is faster.
        const bool overlap = offset.dy == 0 && m >= n && m < n + some;
        for (int64_t r = 0; r < count; r++) {
            const int64_t first = r * labels * plane();
            for (int64_t row = rows.begin; row < last; row++) {
                const int64_t here = row * width + left, there = here + offset.dy * width + offset.dx;
                const T* entries = block + n * plane() + here;
                const int64_t of_m = first + m * plane() + here, of_n = first + n * plane() + there;
                if (to_here && to_there && overlap) {
                    couple_run<some, true, false>(entries, vectors + of_m, vectors + of_n, out + of_m, out + of_n, length);
                    couple_run<some, false, true>(entries, vectors + of_m, vectors + of_n, out + of_m, out + of_n, length);
                } else {
                    couple_run<some, to_here, to_there>(
                        entries, vectors + of_m, vectors + of_n, out + of_m, out + of_n, length
                    );
                }
            }
        }
    }

    // A run of pixels in one label with their neighbours in `some` labels.
    template <int some, bool to_here, bool to_there>
    void couple_run(const T* entries, const T* here, const T* there, T* to_m, T* to_n, int64_t length) const {
        const int64_t step = plane();
        int64_t i = 0;
        for (; i + lanes<T> <= length; i += lanes<T>) {
            Vector<T> weight[some];
            for (int k = 0; k < some; k++) {
                weight[k] = load(entries + k * step + i);
                __builtin_prefetch(entries + (some + k) * step + i);  // the next labels' come next
            }
            if constexpr (to_here) {
                Vector<T> total = load(to_m + i);
                for (int k = 0; k < some; k++) total += weight[k] * load(there + k * step + i);
                store(to_m + i, total);
            }
            if constexpr (to_there) {
                const Vector<T> value = load(here + i);
                for (int k = 0; k < some; k++)
                    store(to_n + k * step + i, load(to_n + k * step + i) + weight[k] * value);
            }
        }
        for (; i < length; i++) {
            for (int k = 0; k < some; k++) {
                const T weight = entries[k * step + i];
                if constexpr (to_here) to_m[i] += weight * there[k * step + i];
                if constexpr (to_there) to_n[k * step + i] += weight * here[i];
            }
        }
    }
};

}  // namespace hdcrf
