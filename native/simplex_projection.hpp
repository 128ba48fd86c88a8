// Projection of rows onto the probability simplex, with a leak, and its adjoint.
//
// Several vectors of rows go through together, a row a lane, so that short rows fill vectors as long ones do, and the
// additions of one need not wait for each other. Each row is worked out alone: threads do not change a bit.

#pragma once

#include <algorithm>
#include <vector>

#include "threads.hpp"
#include "vectors.hpp"

namespace hdcrf {

constexpr int row_vectors = 4;

// Some rows, turned: of label l, `row_vectors` vectors of all rows' entries. With labels up to a whole vector, where
// those beyond the last mean nothing.
template <typename T>
class TurnedRows {
    static constexpr int L = lanes<T>;

public:
    static constexpr int64_t rows = row_vectors * L;

    explicit TurnedRows(int64_t labels) : labels_(labels), values_(size_t((labels + L - 1) / L * L * rows)) {}

    Vector<T> get(int64_t label, int group) const { return load(values_.data() + (label * row_vectors + group) * L); }

    // Rows from `first` on, of `all` in the array; beyond the last one, it again.
    void fill(const T* from, int64_t first, int64_t all) {
        for (int group = 0; group < row_vectors; group++)
            for (int64_t label = 0; label < labels_; label += L) {
                const int64_t row = first + group * L, at = row * labels_ + label;
                Vector<T> v[L];
                if (at + (L - 1) * labels_ + L <= all * labels_)
                    for (int r = 0; r < L; r++) v[r] = load(from + at + r * labels_);
                else
                    for (int r = 0; r < L; r++) {
                        const T* of_row = from + std::min(row + r, all - 1) * labels_;
                        v[r] = load_some(of_row + label, int(std::min<int64_t>(L, labels_ - label)));
                    }
                transpose<T>(v);
                for (int l = 0; l < L; l++) store(values_.data() + ((label + l) * row_vectors + group) * L, v[l]);
            }
    }

    // Write value(label, group) to rows from `first` on, before `end`.
    //
    // Vectors reach into what comes after a row: that is written later, as rows go forward and labels backward.
    template <typename Value>
    void write(T* to, int64_t first, int64_t end, const Value& value) const {
        for (int group = 0; group < row_vectors; group++)
            for (int64_t label = (labels_ - 1) / L * L; label >= 0; label -= L) {
                const int64_t row = first + group * L, at = row * labels_ + label;
                Vector<T> v[L];
                for (int l = 0; l < L; l++) v[l] = value(label + l, group);
                transpose<T>(v);
                if (at + (L - 1) * labels_ + L <= end * labels_)
                    for (int r = 0; r < L; r++) store(to + at + r * labels_, v[r]);
                else
                    for (int r = 0; r < std::min<int64_t>(L, end - row); r++)
                        store_some(to + at + r * labels_, v[r], int(std::min<int64_t>(L, labels_ - label)));
            }
    }

private:
    int64_t labels_;
    Buffer<T> values_;
};

// work(rows, first, end) for all rows, with `arrays` TurnedRows to work with; `end` is where the thread's own end.
template <typename T, typename Work>
void each_rows(int64_t points, int64_t labels, int arrays, int threads, const Work& work) {
    threads = useful_threads(threads, points * labels);
    std::vector<std::vector<TurnedRows<T>>> space(static_cast<size_t>(threads));
    for (auto& own : space)
        for (int i = 0; i < arrays; i++) own.emplace_back(labels);
    parallel(threads, [&](Team& team, int thread) {
        const Range range = share(points, thread, team.threads);
        for (int64_t first = range.begin; first < range.end; first += TurnedRows<T>::rows)
            work(space[size_t(thread)].data(), first, range.end);
    });
}

// out[i] = x - t where that is positive, leak · (x - t) elsewhere, for x = values[i] and t so that the former sum to 1.
//
// Newton's method for Σ max(x - t, 0) = 1, from below, where t rises until no more entries fall below it. The largest
// entry is 0 here. NaN stays: a comparison with it is false, so no sum leaves it out.
template <typename T>
void project_simplex(const T* values, T leak, T* out, int64_t points, int64_t labels, int threads) {
    each_rows<T>(points, labels, 1, threads, [=](TurnedRows<T>* space, int64_t first, int64_t end) {
        TurnedRows<T>& x = *space;
        x.fill(values, first, points);
        Vector<T> highest[row_vectors], t[row_vectors], rest[row_vectors], active[row_vectors];
        for (int g = 0; g < row_vectors; g++) {
            highest[g] = x.get(0, g);
            t[g] = broadcast(T(-1));
            active[g] = broadcast(std::numeric_limits<T>::infinity());
        }
        for (int64_t l = 1; l < labels; l++)
            for (int g = 0; g < row_vectors; g++) highest[g] = larger<T>(highest[g], x.get(l, g));
        for (bool moves = true; moves;) {
            Vector<T> sum[row_vectors] = {}, count[row_vectors] = {};
            for (int64_t l = 0; l < labels; l++)
                for (int g = 0; g < row_vectors; g++) {
                    const Vector<T> above = x.get(l, g) - highest[g] - t[g];
                    sum[g] += above <= 0 ? Vector<T>{} : above;
                    count[g] += above <= 0 ? Vector<T>{} : broadcast(T(1));
                }
            Integers<T> fewer{};
            for (int g = 0; g < row_vectors; g++) {
                const auto falls = count[g] < active[g];
                rest[g] = (sum[g] - T(1)) / count[g];
                t[g] = falls ? t[g] + rest[g] : t[g];
                active[g] = count[g];
                fewer |= falls;
            }
            moves = false;
            for (int i = 0; i < lanes<T>; i++) moves |= fewer[i] != 0;
        }
        // What t leaves of the sum is smaller than t can show.
        if (leak == T(0))
            x.write(out, first, end, [&](int64_t l, int g) {
                const Vector<T> above = x.get(l, g) - highest[g] - t[g] - rest[g];
                return above <= 0 ? Vector<T>{} : above;
            });
        else
            x.write(out, first, end, [&](int64_t l, int g) {
                const Vector<T> above = x.get(l, g) - highest[g] - t[g] - rest[g];
                return above <= 0 ? leak * above : above;
            });
    });
}

// out[i] = Jᵀ gradient[i] for the derivative J of project_simplex at a row, of which `projected` is the result:
// s_λ g_λ, and less their mean over the active λ at these, where the slope s is 1 for active λ and else the leak.
template <typename T>
void project_simplex_adjoint(
    const T* gradient, const T* projected, T leak, T* out, int64_t points, int64_t labels, int threads
) {
    each_rows<T>(points, labels, 2, threads, [=](TurnedRows<T>* space, int64_t first, int64_t end) {
        TurnedRows<T>&g = space[0], &result = space[1];
        g.fill(gradient, first, points);
        result.fill(projected, first, points);
        Vector<T> mean[row_vectors];
        Vector<T> sum[row_vectors] = {}, count[row_vectors] = {};
        for (int64_t l = 0; l < labels; l++)
            for (int i = 0; i < row_vectors; i++) {
                const auto active = result.get(l, i) > 0;
                sum[i] += active ? g.get(l, i) : leak * g.get(l, i);
                count[i] += active ? broadcast(T(1)) : Vector<T>{};
            }
        for (int i = 0; i < row_vectors; i++) mean[i] = sum[i] / count[i];
        g.write(out, first, end, [&](int64_t l, int i) {
            return result.get(l, i) > 0 ? g.get(l, i) - mean[i] : leak * g.get(l, i);
        });
    });
}

}  // namespace hdcrf
