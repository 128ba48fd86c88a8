// The adjoint of what one iteration of mean field does at a point: the kernel of the backward pass in
// hdcrf/fused_training.py.

#pragma once

#include <algorithm>

#include "threads.hpp"
#include "vectors.hpp"

namespace hdcrf {

template <typename T>
struct MeanFieldAdjoint {
    int64_t points, channels;
    bool pairs;          // one channel, the difference v of two marginals
    const T* marginals;  // (N, C) before the iteration
    const T* gradient;   // (N, C) with respect to the message
    // (N, C) what the adjoints of the kernels make of it, or null.
    const T *appearance = nullptr, *smoothness = nullptr;
    T appearance_weight = 0, smoothness_weight = 0;
    const T* own = nullptr;  // (N,) diagonal that the message leaves out, or null

    // `next` (N, C): the gradient with respect to the logits that the marginals came from, which is added to `total` too;
    // `of_own` (N,), or null: that with respect to `own`, added. Returns those with respect to the two weights.
    std::pair<double, double> run(T* next, T* total, T* of_own, int threads) const {
        threads = useful_threads(threads, points * channels);
        std::vector<double> sums(size_t(threads) * 16, 0.0);  // a cache line apart
        parallel(threads, [&](Team& team, int thread) {
            for (int part = thread; part < threads; part += team.threads) {
                const Range range = share(points, part, threads);
                double appearance_sum = 0, smoothness_sum = 0;
                for (int64_t i = range.begin; i < range.end; i++) {
                    const auto [a, s, o] = point(i, next, range.end * channels);
                    appearance_sum += a;
                    smoothness_sum += s;
                    if (of_own) of_own[i] -= o;
                }
                for (int64_t place = range.begin * channels; place < range.end * channels; place++)
                    total[place] += next[place];
                sums[size_t(part) * 16] = appearance_sum;
                sums[size_t(part) * 16 + 1] = smoothness_sum;
            }
        });
        std::pair<double, double> of_weights{0, 0};
        for (int part = 0; part < threads; part++) {
            of_weights.first += sums[size_t(part) * 16];
            of_weights.second += sums[size_t(part) * 16 + 1];
        }
        return of_weights;
    }

private:
    struct Products {
        T appearance, smoothness, own;  // of the marginals with each
    };

    // Writes up to a vector beyond the point, which the next one overwrites, but not from `end` on.
    Products point(int64_t i, T* next, int64_t end) const {
        const int64_t begin = i * channels, all_channels = points * channels;
        const T factor = own ? own[i] : T(0);
        Vector<T> with_appearance{}, with_smoothness{}, with_own{}, with_all{};
        for (int64_t c = 0; c < channels; c += lanes<T>) {
            const int count = int(std::min<int64_t>(lanes<T>, channels - c));
            const int64_t place = begin + c;
            const auto read = [&](const T* from) { return load_first(from + place, count, all_channels - place); };
            const Vector<T> q = read(marginals), g = read(gradient);
            Vector<T> all = -factor * g;
            with_own += q * g;
            if (appearance) {
                const Vector<T> value = read(appearance);
                with_appearance += q * value;
                all += appearance_weight * value;
            }
            if (smoothness) {
                const Vector<T> value = read(smoothness);
                with_smoothness += q * value;
                all += smoothness_weight * value;
            }
            with_all += q * all;
            place + lanes<T> <= end ? store(next + place, all) : store_some(next + place, all, count);
        }
        if (pairs) {  // v = tanh(½ x)
            next[begin] *= T(0.5) * (T(1) - marginals[begin] * marginals[begin]);
        } else {  // softmax
            const T mean = sum(with_all);
            for (int64_t place = begin; place < begin + channels; place += lanes<T>) {
                const int count = int(std::min<int64_t>(lanes<T>, begin + channels - place));
                if (place + lanes<T> <= end)
                    store(next + place, load(marginals + place) * (load(next + place) - mean));
                else
                    for (int k = 0; k < count; k++) next[place + k] = marginals[place + k] * (next[place + k] - mean);
            }
        }
        return {sum(with_appearance), sum(with_smoothness), sum(with_own)};
    }
};

}  // namespace hdcrf
