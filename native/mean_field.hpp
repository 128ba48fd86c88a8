// One iteration of mean field, in one pass over the points: slice and smooth the marginals, weigh the labels against
// each other, softmax, and splat the new marginals. The kernel of the loop in hdcrf/mean_field.py.
//
// Points are gone through in blocks of rows that stay in the cache. Each thread has vertices of its own to splat to,
// and the next iteration begins by adding these up; so a thread count gives the same bits each time.
//
// Two labels under Potts need one number a point: with v = Q(1) - Q(0), the difference of their messages is K v.

#pragma once

#include <algorithm>

#include "blur.hpp"
#include "smoothing.hpp"

namespace hdcrf {

enum class Costs { potts, diagonal, full };

// The kernel of a lattice: w c · L S B Sᵀ R.
template <typename T>
struct MessageLattice {
    int64_t vertices;
    int corners, axes, order;
    const int32_t* cell;           // (N,)
    const int32_t* cell_vertices;  // (M, P)
    const T* weights;              // (N, P)
    const int32_t* links;          // (A, V, 2)
    const T *left, *right;         // (N,) or null for ones
    T scale;                       // w c

    const int32_t* vertices_of(int64_t point) const { return cell_vertices + int64_t(cell[point]) * corners; }
    const T* weights_of(int64_t point) const { return weights + point * corners; }
};

template <typename T>
struct MeanField {
    int64_t points, labels;
    const T* logits;  // (N, K)

    std::vector<MessageLattice<T>> lattices;

    const Smoothing<T>* smoothing = nullptr;  // of images with `channels()` channels; null without
    T smoothing_weight = 1;
    const T* own = nullptr;  // (N,) diagonal to leave out, or null

    Costs costs = Costs::potts;
    // (stride,) for diagonal; for full (K, stride), row b the negative cost of meeting b, for each label.
    const T* reward = nullptr;

    bool pairs() const { return labels == 2 && costs == Costs::potts; }
    int64_t channels() const { return pairs() ? 1 : labels; }
    // Numbers a vertex takes.
    int64_t stride() const { return pairs() ? 1 : (labels + lanes<T> - 1) / lanes<T> * lanes<T>; }

    // For each lattice its vertices' values, (V, stride): a set for each thread to splat to, and one more for the blur.
    struct Vertices {
        Buffer<T> blurred;
        std::vector<Buffer<T>> splat;
    };

    // What iterations work in: the vertices, and what each thread keeps while it goes through its points.
    struct Workspace {
        int threads;
        std::vector<Vertices> vertices;
        std::vector<typename Smoothing<T>::Workspace> smooth;
        std::vector<Buffer<T>> scratch;
        std::vector<std::vector<Vector<T>>> many;  // labels of a point, where there are many
    };

    Workspace workspace(int threads) const;

    // Q ← softmax(logits), or, if `messages`, softmax(logits - μ m(previous)); and splat Q if there is more to come.
    // `previous` and `next` (N, channels) must not be the same; `updated` (N, K) takes the new logits or is null. With
    // no more to come, `next` is (N, K) also for pairs.
    // Returns false if a sum was not finite.
    bool step(const T* previous, T* next, T* updated, bool messages, bool more, Workspace& space) const;

private:
    static constexpr int64_t strip = 64;  // points at a time, so that what is between the loops stays in the cache

    struct Strip {
        int64_t first, count;  // points
        int64_t end;           // the point before which writing must end: what is beyond may be done already
        const T* smoothed = nullptr;  // (count, smoothing's stride), or null
        const T* previous;            // null without messages
        T *next, *updated;
        Vertices* vertices;  // of each lattice
        size_t part;         // which of them to splat to
        T* scratch;
        Vector<T>* many;
        bool more;
    };

    void process(const Strip& at, Vector<T>& excess) const {
        if (pairs()) return pairs_of(at, excess);
        switch (stride() / lanes<T>) {
            case 1: return labels_of<1>(at, excess);
            case 2: return labels_of<2>(at, excess);
            case 3: return labels_of<3>(at, excess);
            case 4: return labels_of<4>(at, excess);
            default: return labels_of<0>(at, excess);
        }
    }
    template <int NV>
    void labels_of(const Strip& at, Vector<T>& excess) const;
    void pairs_of(const Strip& at, Vector<T>& excess) const;
};

template <typename T>
typename MeanField<T>::Workspace MeanField<T>::workspace(int threads) const {
    Workspace space;
    int64_t vertices = 0;
    for (const auto& lattice : lattices) vertices += lattice.vertices;
    space.threads = fitting_threads(useful_threads(threads, points * channels(), 1 << 15), points, vertices);
    for (const auto& lattice : lattices) {
        const size_t size = size_t(lattice.vertices * stride());
        Vertices& of = space.vertices.emplace_back();
        of.blurred.resize(size);
        for (int thread = 0; thread < space.threads; thread++) of.splat.emplace_back(size);
    }
    for (int thread = 0; thread < space.threads; thread++) {
        if (smoothing) space.smooth.push_back(smoothing->workspace());
        space.scratch.emplace_back(size_t(strip * (stride() + lanes<T> + 1)));
        space.many.emplace_back(size_t(stride() / lanes<T> + 1));
    }
    return space;
}

template <typename T>
bool MeanField<T>::step(const T* previous, T* next, T* updated, bool messages, bool more, Workspace& space) const {
    const int64_t width = smoothing ? smoothing->width : std::min<int64_t>(512, points);
    const int64_t height = smoothing ? smoothing->height : (points + width - 1) / width;
    const int64_t image = smoothing ? height * width : points;
    const int64_t blocks = (height + rows_at_once - 1) / rows_at_once;
    const int64_t images = points / image;
    std::atomic<bool> finite{true};
    parallel(space.threads, [&](Team& team, int thread) {
        for (size_t which = 0; messages && which < lattices.size(); which++) {
            // Add up what the threads splatted, and blur it: to and fro between `blurred`, where it is to end, and the
            // first thread's vertices, which are free from then on.
            const MessageLattice<T>& lattice = lattices[which];
            Vertices& of = space.vertices[which];
            T* sums = of.blurred.data();
            T* other = of.splat[0].data();
            if (lattice.axes * lattice.order % 2) std::swap(sums, other);
            const Range range = share(lattice.vertices * stride(), thread, team.threads);
            for (int64_t i = range.begin; i < range.end; i++) {
                T total = of.splat[0][size_t(i)];
                for (size_t part = 1; part < of.splat.size(); part++) total += of.splat[part][size_t(i)];
                sums[i] = total;
            }
            blur(team, thread, sums, other, lattice.links, lattice.vertices, lattice.axes, lattice.order, stride(),
                 lattice.scale, false);
        }
        // Work for as many threads as there are splats; fewer may have come.
        for (int part = thread; part < space.threads; part += team.threads) {
            for (size_t which = 0; more && which < lattices.size(); which++)
                std::fill_n(space.vertices[which].splat[size_t(part)].data(), lattices[which].vertices * stride(), T(0));
            Vector<T> excess{};  // zero as long as all is finite, NaN from then on
            Strip at;
            at.previous = messages ? previous : nullptr;
            at.next = next;
            at.updated = updated;
            at.vertices = space.vertices.data();
            at.part = size_t(part);
            at.scratch = space.scratch[size_t(part)].data();
            at.many = space.many[size_t(part)].data();
            at.more = more;
            const bool smoothed = smoothing && messages;
            const Range range = share(images * blocks, part, space.threads);
            for (int64_t block = range.begin; block < range.end; block++) {
                const int64_t start = block / blocks * image, row = block % blocks * rows_at_once;
                if (smoothed)
                    smoothing->smooth_rows(previous + start * channels(), row, space.smooth[size_t(part)]);
                // In tiles, whose points share vertices.
                for (int64_t column = 0; column < width; column += strip)
                    for (int64_t r = 0; r < rows_at_once && (row + r) * width + column < image; r++) {
                        const int64_t first = (row + r) * width, end = std::min(first + width, image);
                        at.first = start + first + column;
                        at.end = start + end;
                        at.count = std::min(strip, end - first - column);
                        if (smoothed)
                            at.smoothed = space.smooth[size_t(part)].horizontal.data() + r * smoothing->row() +
                                          column * smoothing->stride;
                        process(at, excess);
                    }
            }
            if (sum(excess) != T(0)) finite.store(false, std::memory_order_relaxed);
        }
    });
    return finite.load();
}

template <typename T>
template <int NV>
void MeanField<T>::labels_of(const Strip& at, Vector<T>& excess) const {
    const auto [first, count, end, smoothed, previous, next, updated, vertices, part, scratch, many, more] = at;
    constexpr int L = lanes<T>;
    // Copies, which the compiler knows not to change.
    const T *const unary = logits, *const reward = this->reward;
    const int nv = NV ? NV : int(stride() / L);
    const int64_t K = labels, width = stride(), all = points * K;
    const int last_lanes = int(K - (nv - 1) * L);
    const Integers<T> filled = lane_numbers<T>() < last_lanes;
    Vector<T> few[NV ? NV : 1];
    Vector<T>* const u = NV ? few : many;

    // Vectors reach beyond a point's own labels: read no further than the last point, write no further than the part.
    const auto read = [=](const T* from, int64_t i, int v) {
        return v < nv - 1 || i + width <= all ? load(from + i + v * L) : load_some(from + i + v * L, last_lanes);
    };
    const int64_t stop = end * K;
    const auto write = [=](T* to, int64_t i, int v, Vector<T> value) {
        if (v < nv - 1 || i + width <= stop)
            store(to + i + v * L, value);
        else
            store_some(to + i + v * L, value, last_lanes);
    };

    // Short loops, so that the processor works at several points at once.
    T* const message = scratch;
    if (previous) {
        for (size_t which = 0; which < lattices.size(); which++) {
            const MessageLattice<T> lattice = lattices[which];
            const T* const values = vertices[which].blurred.data();
            for (int64_t x = 0; x < count; x++) {
                const int64_t i = first + x;
                for (int v = 0; v < nv; v++) u[v] = which ? load(message + x * width + v * L) : Vector<T>{};
                const int32_t* vertex = lattice.vertices_of(i);
                const T* w = lattice.weights_of(i);
                const T factor = lattice.left ? lattice.left[i] : T(1);
                each_corner(lattice.corners, [&](int p) {
                    const T* from = values + vertex[p] * width;
                    const T weight = factor * w[p];
                    for (int v = 0; v < nv; v++) u[v] += weight * load(from + v * L);
                });
                for (int v = 0; v < nv; v++) store(message + x * width + v * L, u[v]);
            }
        }
        for (int64_t x = 0; x < count; x++) {
            const int64_t i = first + x;
            for (int v = 0; v < nv; v++) u[v] = lattices.empty() ? Vector<T>{} : load(message + x * width + v * L);
            if (smoothed) {
                const T* from = smoothed + x * smoothing->stride;
                for (int v = 0; v < nv; v++) u[v] += smoothing_weight * load(from + v * L);
            }
            if (own)
                for (int v = 0; v < nv; v++) u[v] -= own[i] * read(previous, i * K, v);
            for (int v = 0; v < nv; v++) store(message + x * width + v * L, u[v]);
        }
    }

    // Softmax: the largest logit and the sum of exponentials of as many points at once as a vector has lanes.
    T* const partial = scratch + strip * width;  // (strip, lanes): of each point, the lanes that are left
    T* const of_point = partial + strip * L;     // (strip,)
    const int64_t rounded = (count + L - 1) / L * L;
    for (int64_t x = 0; x < count; x++) {
        const int64_t i = (first + x) * K;
        T* const m = message + x * width;
        for (int v = 0; v < nv; v++) u[v] = read(unary, i, v);
        if (previous) {
            if (costs == Costs::potts) {
                for (int v = 0; v < nv; v++) u[v] += load(m + v * L);
            } else if (costs == Costs::diagonal) {
                for (int v = 0; v < nv; v++) u[v] += load(m + v * L) * load(reward + v * L);
            } else {
                for (int64_t b = 0; b < K; b++)
                    for (int v = 0; v < nv; v++) u[v] += m[b] * load(reward + b * width + v * L);
            }
        }
        if (updated)
            for (int v = 0; v < nv; v++) write(updated, i, v, u[v]);
        u[nv - 1] = filled ? u[nv - 1] : Vector<T>{};
        for (int v = 0; v < nv; v++) excess += u[v] * T(0);
        u[nv - 1] = filled ? u[nv - 1] : broadcast(-std::numeric_limits<T>::infinity());
        Vector<T> highest = u[0];
        for (int v = 1; v < nv; v++) highest = larger<T>(highest, u[v]);
        for (int v = 0; v < nv; v++) store(m + v * L, u[v]);
        store(partial + x * L, highest);
    }
    for (int64_t x = count; x < rounded; x++) store(partial + x * L, Vector<T>{});
    for (int64_t x = 0; x < rounded; x += L) store(of_point + x, across<T>(partial + x * L, larger<T>));
    for (int64_t x = 0; x < count; x++) {
        T* const m = message + x * width;
        Vector<T> total{};
        for (int v = 0; v < nv; v++) {
            Vector<T> e = exponential(load(m + v * L) - of_point[x]);
            if (v == nv - 1) e = filled ? e : Vector<T>{};
            store(m + v * L, e);
            total += e;
        }
        store(partial + x * L, total);
    }
    const auto add = [](Vector<T> a, Vector<T> b) { return a + b; };
    for (int64_t x = 0; x < rounded; x += L) store(of_point + x, T(1) / across<T>(partial + x * L, add));

    for (int64_t x = 0; x < count; x++) {
        const int64_t i = first + x;
        for (int v = 0; v < nv; v++) {
            u[v] = of_point[x] * load(message + x * width + v * L);
            write(next, i * K, v, u[v]);
            store(message + x * width + v * L, u[v]);
        }
    }
    for (size_t which = 0; more && which < lattices.size(); which++) {
        const MessageLattice<T> lattice = lattices[which];
        T* const splat_to = vertices[which].splat[part].data();
        for (int64_t x = 0; x < count; x++) {
            const int64_t i = first + x;
            const T factor = lattice.right ? lattice.right[i] : T(1);
            for (int v = 0; v < nv; v++) u[v] = factor * load(message + x * width + v * L);
            const int32_t* vertex = lattice.vertices_of(i);
            const T* w = lattice.weights_of(i);
            each_corner(lattice.corners, [&](int p) {
                T* to = splat_to + vertex[p] * width;
                for (int v = 0; v < nv; v++) store(to + v * L, load(to + v * L) + w[p] * u[v]);
            });
        }
    }
}

template <typename T>
void MeanField<T>::pairs_of(const Strip& at, Vector<T>& excess) const {
    const auto [first, count, end, smoothed, previous, next, updated, vertices, part, scratch, many, more] = at;
    T* difference = scratch;
    for (int64_t x = 0; x < count; x++) {
        const int64_t i = first + x;
        difference[x] = logits[2 * i + 1] - logits[2 * i];
    }
    if (previous) {
        for (size_t which = 0; which < lattices.size(); which++) {
            const MessageLattice<T> lattice = lattices[which];
            const T* const values = vertices[which].blurred.data();
            for (int64_t x = 0; x < count; x++) {
                const int64_t i = first + x;
                const int32_t* vertex = lattice.vertices_of(i);
                const T* w = lattice.weights_of(i);
                T total = 0;
                each_corner(lattice.corners, [&](int p) { total += w[p] * values[vertex[p]]; });
                difference[x] += lattice.left ? lattice.left[i] * total : total;
            }
        }
        if (smoothed)
            for (int64_t x = 0; x < count; x++) difference[x] += smoothing_weight * smoothed[x];
        if (own)
            for (int64_t x = 0; x < count; x++) difference[x] -= own[first + x] * previous[first + x];
    }
    if (updated)
        for (int64_t x = 0; x < count; x++) {
            const int64_t i = first + x;
            updated[2 * i] = logits[2 * i];
            updated[2 * i + 1] = logits[2 * i] + difference[x];
        }
    // v = Q(1) - Q(0) = tanh(½ difference) = (1 - e) / (1 + e) with e = exp(-|difference|), and the sign.
    for (int64_t x = 0; x < count; x += lanes<T>) {
        const int some = int(std::min<int64_t>(lanes<T>, count - x));
        const Vector<T> d = load_some(difference + x, some);
        excess += d * T(0);
        const Vector<T> e = exponential(d > 0 ? -d : d), inverse = T(1) / (T(1) + e);
        if (more) {
            const Vector<T> size = (T(1) - e) * inverse, v = d > 0 ? size : -size;
            store_some(next + first + x, v, some);
            continue;
        }
        const Vector<T> less = e * inverse, zero = d > 0 ? less : inverse, one = d > 0 ? inverse : less;
        for (int k = 0; k < some; k++) {
            next[2 * (first + x + k)] = zero[k];
            next[2 * (first + x + k) + 1] = one[k];
        }
    }
    for (size_t which = 0; more && which < lattices.size(); which++) {
        const MessageLattice<T> lattice = lattices[which];
        T* const splat_to = vertices[which].splat[part].data();
        for (int64_t x = 0; x < count; x++) {
            const int64_t i = first + x;
            const int32_t* vertex = lattice.vertices_of(i);
            const T* w = lattice.weights_of(i);
            const T value = lattice.right ? lattice.right[i] * next[i] : next[i];
            each_corner(lattice.corners, [&](int p) { splat_to[vertex[p]] += w[p] * value; });
        }
    }
}

}  // namespace hdcrf
