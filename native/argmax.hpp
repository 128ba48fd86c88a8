// The label of the largest marginal: torch.argmax over the last dimension, which is slow for short rows.

#pragma once

#include "threads.hpp"
#include "vectors.hpp"

namespace hdcrf {

// out[i] = the first label l of those that maximise values[i, l].
template <typename T>
void argmax(const T* values, int64_t* out, int64_t points, int64_t labels, int threads) {
    parallel(useful_threads(threads, points * labels), [&](Team& team, int thread) {
        const Range range = share(points, thread, team.threads);
        const Integers<T> lane = lane_numbers<T>();
        for (int64_t i = range.begin; i < range.end; i++) {
            const T* row = values + i * labels;
            int64_t label = 0, l = 0;
            T best = row[0];
            if (labels >= lanes<T>) {
                // The best of each lane, and where it is; the last vector overlaps the one before.
                Vector<T> bests = load(row);
                Integers<T> where = lane;
                const auto look = [&](int64_t at) {
                    const Vector<T> value = load(row + at);
                    const Integers<T> better = value > bests;
                    bests = better ? value : bests;
                    where = better ? lane + decltype(lane[0] + 0)(at) : where;
                };
                for (l = lanes<T>; l + lanes<T> <= labels; l += lanes<T>) look(l);
                if (l < labels) look(labels - lanes<T>);
                best = bests[0];
                label = where[0];
                for (int k = 1; k < lanes<T>; k++)
                    if (bests[k] > best || (bests[k] == best && where[k] < label)) best = bests[k], label = where[k];
            } else {
                for (l = 1; l < labels; l++)
                    if (row[l] > best) best = row[l], label = l;
            }
            out[i] = label;
        }
    });
}

}  // namespace hdcrf
