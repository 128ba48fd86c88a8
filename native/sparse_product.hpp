// Products with sparse matrices by rows: the kernels of voxel/sparse_matrix.py.

#pragma once

#include <algorithm>

#include "threads.hpp"
#include "vectors.hpp"

namespace hdcrf {

// out[r] = Σ_e weights[e] values[columns[e]] over the entries e of row r; `channels` numbers in a row.
template <typename T, typename I>
void sparse_product(
    const T* values, const T* weights, const I* row_pointers, const I* columns, T* out,
    int64_t rows, int64_t channels, int threads
) {
    const int64_t entries = row_pointers[rows] - row_pointers[0];
    parallel(useful_threads(threads, (entries + rows) * channels), [&](Team& team, int thread) {
        // Each thread takes the rows that hold its share of the entries.
        const auto bound = [&](int part) -> int64_t {
            if (part == 0) return 0;
            if (part == team.threads) return rows;
            const I entry = I(row_pointers[0] + entries * part / team.threads);
            return std::lower_bound(row_pointers, row_pointers + rows, entry) - row_pointers;
        };
        const int64_t begin = bound(thread), end = bound(thread + 1);
        constexpr int wide = 4;
        for (int64_t row = begin; row < end; row++) {
            const I first = row_pointers[row], last = row_pointers[row + 1];
            T* target = out + row * channels;
            int64_t channel = 0;
            for (; channel + wide * lanes<T> <= channels; channel += wide * lanes<T>) {
                Vector<T> total[wide] = {};
                for (I entry = first; entry < last; entry++) {
                    const T* source = values + int64_t(columns[entry]) * channels + channel;
                    for (int i = 0; i < wide; i++) total[i] += weights[entry] * load(source + i * lanes<T>);
                }
                for (int i = 0; i < wide; i++) store(target + channel + i * lanes<T>, total[i]);
            }
            for (; channel + lanes<T> <= channels; channel += lanes<T>) {
                Vector<T> total{};
                for (I entry = first; entry < last; entry++)
                    total += weights[entry] * load(values + int64_t(columns[entry]) * channels + channel);
                store(target + channel, total);
            }
            for (; channel < channels; channel++) {
                T total = 0;
                for (I entry = first; entry < last; entry++)
                    total += weights[entry] * values[int64_t(columns[entry]) * channels + channel];
                target[channel] = total;
            }
        }
    });
}

// out[e] = ⟨left[row of e], right[columns[e]]⟩.
template <typename T, typename I>
void sampled_product(
    const T* left, const T* right, const I* row_pointers, const I* columns, T* out, int64_t rows,
    int64_t channels, int threads
) {
    const int64_t entries = row_pointers[rows] - row_pointers[0];
    parallel(useful_threads(threads, entries * channels), [&](Team& team, int thread) {
        const Range range = share(rows, thread, team.threads);
        for (int64_t row = range.begin; row < range.end; row++) {
            const T* a = left + row * channels;
            for (I entry = row_pointers[row]; entry < row_pointers[row + 1]; entry++) {
                const T* b = right + int64_t(columns[entry]) * channels;
                Vector<T> total{};
                int64_t channel = 0;
                for (; channel + lanes<T> <= channels; channel += lanes<T>)
                    total += load(a + channel) * load(b + channel);
                T rest = 0;
                for (; channel < channels; channel++) rest += a[channel] * b[channel];
                out[entry] = sum(total) + rest;
            }
        }
    });
}

// The transpose of a matrix with `per_row` entries in each row, by counting: which entries of each column there are,
// in ascending order.
template <typename I>
void transpose(
    const I* columns, int64_t rows, int64_t per_row, int64_t num_columns, I* pointers, I* order, int threads
) {
    // Each thread counts in a part of the rows and then places its own entries behind those of the threads before.
    threads = fitting_threads(useful_threads(threads, rows * per_row), rows, num_columns);
    std::vector<std::vector<I>> counts(size_t(threads), std::vector<I>(size_t(num_columns), I(0)));
    const int parts = threads;
    parallel(threads, [&](Team& team, int thread) {
        for (int part = thread; part < parts; part += team.threads) {
            const Range range = share(rows, part, parts);
            for (int64_t e = range.begin * per_row; e < range.end * per_row; e++) counts[size_t(part)][size_t(columns[e])]++;
        }
        team.wait();
        if (thread == 0) {
            I total = 0;
            for (int64_t column = 0; column < num_columns; column++) {
                pointers[column] = total;
                for (auto& count : counts) {
                    const I here = count[size_t(column)];
                    count[size_t(column)] = total;
                    total += here;
                }
            }
            pointers[num_columns] = total;
        }
        team.wait();
        for (int part = thread; part < parts; part += team.threads) {
            const Range range = share(rows, part, parts);
            for (int64_t e = range.begin * per_row; e < range.end * per_row; e++)
                order[counts[size_t(part)][size_t(columns[e])]++] = I(e);
        }
    });
}

}  // namespace hdcrf
