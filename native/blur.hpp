// The blur ¼ ½ ¼ along each axis: the kernel of voxel/blur.py.

#pragma once

#include <algorithm>

#include "threads.hpp"
#include "vectors.hpp"

namespace hdcrf {

// Call function(p) for each corner; those of colour images in a loop of known length.
template <typename Function>
inline void each_corner(int corners, const Function& function) {
    if (corners == 6)
        for (int p = 0; p < 6; p++) function(p);
    else
        for (int p = 0; p < corners; p++) function(p);
}

// One round along one axis, for a range of vertices; `stride` numbers in a row, a multiple of the vector's or not.
template <typename T>
void blur_round(const T* in, T* out, const int32_t* links, Range range, int64_t stride, T scale) {
    const T half = T(0.5) * scale, quarter = T(0.25) * scale;
    if (stride == 1) {
        for (int64_t v = range.begin; v < range.end; v++) {
            const int32_t behind = links[2 * v], ahead = links[2 * v + 1];
            const T weight_a = behind < 0 ? T(0) : quarter, weight_b = ahead < 0 ? T(0) : quarter;
            out[v] = half * in[v] + (weight_a * in[std::max(behind, 0)] + weight_b * in[std::max(ahead, 0)]);
        }
        return;
    }
    const int64_t last = range.end - 1;
    for (int64_t v = range.begin; v < range.end; v++) {
        // Neighbours of a vertex further on: far apart, where there are many.
        const int32_t* later = links + 2 * std::min(v + 12, last);
        __builtin_prefetch(in + (later[0] < 0 ? v : later[0]) * stride);
        __builtin_prefetch(in + (later[1] < 0 ? v : later[1]) * stride);
        const int32_t behind = links[2 * v], ahead = links[2 * v + 1];
        const T* here = in + v * stride;
        const T* a = in + (behind < 0 ? v : behind) * stride;
        const T* b = in + (ahead < 0 ? v : ahead) * stride;
        const T weight_a = behind < 0 ? T(0) : quarter, weight_b = ahead < 0 ? T(0) : quarter;
        T* to = out + v * stride;
        int64_t c = 0;
        for (; c + lanes<T> <= stride; c += lanes<T>)
            store(to + c, half * load(here + c) + (weight_a * load(a + c) + weight_b * load(b + c)));
        for (; c < stride; c++) to[c] = half * here[c] + (weight_a * a[c] + weight_b * b[c]);
    }
}

// All axes in turn, 0 first or, for the adjoint, last; `order` rounds each, times `scale`. The result ends in `values`
// or in `other`, whichever is returned.
template <typename T>
T* blur(
    Team& team, int thread, T* values, T* other, const int32_t* links, int64_t vertices, int axes, int order,
    int64_t stride, T scale, bool adjoint
) {
    const Range range = share(vertices, thread, team.threads);
    for (int step = 0; step < axes; step++) {
        const int axis = adjoint ? axes - 1 - step : step;
        for (int round = 0; round < order; round++) {
            team.wait();
            const bool last = step == axes - 1 && round == order - 1;
            blur_round(values, other, links + 2 * axis * vertices, range, stride, last ? scale : T(1));
            std::swap(values, other);
        }
    }
    team.wait();
    return values;
}

}  // namespace hdcrf
