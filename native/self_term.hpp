// The exact diagonal of the permutohedral filter: the kernel of lattice/self_term.py, where it is explained, by the ways
// of all sets of axes.

#pragma once

#include <algorithm>

#include "threads.hpp"
#include "vectors.hpp"

namespace hdcrf {

template <typename T>
struct SelfTerm {
    int64_t cells, vertices;
    int corners, order;
    const int32_t* cell_vertices;  // (M, P)
    const int16_t* ranks;          // (M, P)
    const int32_t* links;          // (P, V, 2)

    // out[m, p, q] = B[v_p, v_q] for the corners of each cell: (M, P, P).
    void corner_kernel(T* out, int threads) const {
        const size_t width = size_t(2 * order + 1), rows = size_t(corners) * size_t(vertices);
        const int64_t sets = int64_t(1) << corners;
        Buffer<int32_t> neighbours(rows * width);
        Buffer<T> taps(rows * width), spare(rows * width), ways(size_t(vertices * sets));
        threads = useful_threads(threads, vertices * sets * order, 1 << 14);
        std::vector<std::vector<int32_t>> places(size_t(threads), std::vector<int32_t>(size_t(sets), 0));
        std::vector<std::vector<T>> products(size_t(threads), std::vector<T>(size_t(sets), T(0)));
        parallel(threads, [&](Team& team, int thread) {
            const Range own = share(int64_t(rows), thread, team.threads);
            const T* table = axis_tables(team, own, neighbours.data(), taps.data(), spare.data());
            const Range mine = share(vertices, thread, team.threads);
            for (int64_t v = mine.begin; v < mine.end; v++)
                ways_of_all_sets(
                    v, neighbours.data(), table, ways.data() + v * sets, places[size_t(thread)].data(),
                    products[size_t(thread)].data()
                );
            team.wait();
            const Range part = share(cells, thread, team.threads);
            for (int64_t cell = part.begin; cell < part.end; cell++) look_up(cell, ways.data(), out);
        });
    }

private:
    // For each axis and vertex, the 2n + 1 vertices along the axis (-1 for none) and the taps of n rounds: voxel/blur.py.
    const T* axis_tables(Team& team, Range own, int32_t* neighbours, T* taps, T* spare) const {
        const int64_t width = 2 * order + 1;
        for (int64_t row = own.begin; row < own.end; row++) {
            const int64_t axis = row / vertices;
            int32_t* here = neighbours + row * width;
            here[order] = int32_t(row % vertices);
            for (int s = 1; s <= order; s++) {
                const auto follow = [&](int32_t from, int side) {
                    return from < 0 ? -1 : links[2 * (axis * vertices + from) + side];
                };
                here[order - s] = follow(here[order - s + 1], 0);
                here[order + s] = follow(here[order + s - 1], 1);
            }
            std::fill_n(taps + row * width, width, T(0));
            taps[row * width + order] = 1;
        }
        for (int round = 0; round < order; round++) {
            team.wait();
            for (int64_t row = own.begin; row < own.end; row++) {
                const int64_t first = row / vertices * vertices;
                const int32_t *here = neighbours + row * width, behind = here[order - 1], ahead = here[order + 1];
                const T *at = taps + row * width, *at_behind = taps + (first + behind) * width,
                        *at_ahead = taps + (first + ahead) * width;
                for (int64_t s = 0; s < width; s++) {
                    const T from_ahead = ahead < 0 || s == 0 ? T(0) : at_ahead[s - 1];
                    const T from_behind = behind < 0 || s == width - 1 ? T(0) : at_behind[s + 1];
                    spare[row * width + s] = T(0.5) * at[s] + T(0.25) * (from_ahead + from_behind);
                }
            }
            std::swap(taps, spare);
        }
        team.wait();
        return taps;
    }

    // total[A] = Σ_t B[v + t·1 + 1_A, v]; the first axis is the highest bit of A.
    void ways_of_all_sets(
        int64_t v, const int32_t* neighbours, const T* taps, T* total, int32_t* place, T* product
    ) const {
        const int64_t width = 2 * order + 1, sets = int64_t(1) << corners;
        std::fill_n(total, sets, T(0));
        for (int turn = -order; turn < order; turn++) {
            place[0] = int32_t(v);
            product[0] = 1;
            int64_t count = 1;
            for (int axis = 0; axis < corners; axis++, count *= 2) {
                const int64_t first = axis * vertices * width + order + turn;
                const int32_t* next = neighbours + first;
                const T* tap = taps + first;
                const bool last = axis == corners - 1;
                // From the back, so that each is read before its place is taken.
                for (int64_t i = count - 1; i >= 0; i--) {
                    // From nowhere one gets nowhere: to any vertex, with the product zero.
                    const int64_t row = std::max(place[i], 0) * width;
                    const T so_far = place[i] < 0 ? T(0) : product[i];
                    product[2 * i + 1] = so_far * tap[row + 1];
                    product[2 * i] = so_far * tap[row];
                    if (last) continue;
                    place[2 * i + 1] = next[row + 1];
                    place[2 * i] = next[row];
                }
            }
            for (int64_t set = 0; set < sets; set++) total[set] += product[set];
            if (turn == order - 1) total[0] += product[sets - 1];
        }
    }

    void look_up(int64_t cell, const T* ways, T* out) const {
        const int64_t everything = (int64_t(1) << corners) - 1;
        const int16_t* rank = ranks + cell * corners;
        const auto behind = [&](int k) {  // the axes along which corner k lies one step behind corner 0
            int64_t set = 0;
            for (int axis = 0; axis < corners; axis++) set |= int64_t(rank[axis] > corners - 1 - k) << (corners - 1 - axis);
            return set;
        };
        for (int q = 0; q < corners; q++) {
            const int64_t source = behind(q);
            const T* from = ways + (int64_t(cell_vertices[cell * corners + q]) << corners);
            for (int p = 0; p < corners; p++) {
                const int64_t target = behind(p);
                out[(cell * corners + p) * corners + q] =
                    from[p <= q ? source & ~target : everything ^ (target & ~source)];
            }
        }
    }
};

// out[i] = scale · wᵀ G w for each point's weights w (N, P) and its cell's matrix G in (M, P, P).
template <typename T>
void quadratic_form(
    const T* weights, const T* matrices, const int32_t* cell, T scale, T* out, int64_t points, int corners, int threads
) {
    parallel(useful_threads(threads, points * corners * corners), [&](Team& team, int thread) {
        const Range range = share(points, thread, team.threads);
        for (int64_t i = range.begin; i < range.end; i++) {
            const T *w = weights + i * corners, *matrix = matrices + int64_t(cell[i]) * corners * corners;
            T total = 0;
            for (int p = 0; p < corners; p++) {
                T row = 0;
                for (int q = 0; q < corners; q++) row += matrix[p * corners + q] * w[q];
                total += w[p] * row;
            }
            out[i] = scale * total;
        }
    });
}

}  // namespace hdcrf
