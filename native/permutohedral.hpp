// Building a permutohedral lattice: the kernel of lattice/elevation.py, lattice/simplex.py and the look-up of
// neighbours. What is computed is explained there; here is how.
//
// A vertex with the remainder k has coordinates x_j = (d+1) y_j + k, so it is known by (k, y_0 … y_{d-1}), the last
// coordinate being implied. That becomes one 64-bit key, linear in k and y: steps along an axis are additions to the
// key. Where the extents multiply to more than 2⁶³, the multipliers are random odd numbers, and every match is
// compared in full; should two vertices share a key, `build` says so, and its caller draws other multipliers.

#pragma once

#include <algorithm>
#include <exception>
#include <limits>

#include "threads.hpp"
#include "vectors.hpp"

namespace hdcrf {

struct VertexKey {
    std::vector<uint64_t> multipliers;  // of y_0 … y_{d-1}; that of the remainder is 1
    uint64_t batch_multiplier = 0;
    uint64_t offset = 0;
    bool exact = false;
};

inline uint64_t mixed(uint64_t key) {
    key ^= key >> 32;
    key *= 0x9E3779B97F4A7C15u;
    return key ^ (key >> 29);
}

// Open addressing with linear probing, from 64-bit keys to indices.
class KeyTable {
public:
    struct Slot {
        uint64_t key;
        int32_t index;  // -1: free
    };

    explicit KeyTable(size_t expected) { allocate(expected); }

    void prefetch(uint64_t key) const { __builtin_prefetch(&slots_[mixed(key) & mask_]); }

    // The index of the key, or -1; `same(index)` tells keys apart that are only hashes.
    template <typename Same>
    int32_t find(uint64_t key, const Same& same) const {
        for (size_t place = mixed(key) & mask_;; place = (place + 1) & mask_) {
            const Slot& slot = slots_[place];
            if (slot.index < 0) return -1;
            if (slot.key == key && same(slot.index)) return slot.index;
        }
    }

    // The index of the key; if it is new, it gets the index `next`.
    template <typename Same>
    int32_t insert(uint64_t key, int32_t next, const Same& same) {
        size_t place = mixed(key) & mask_;
        for (;; place = (place + 1) & mask_) {
            const Slot& slot = slots_[place];
            if (slot.index < 0) break;
            if (slot.key == key && same(slot.index)) return slot.index;
        }
        slots_[place] = {key, next};
        if (++count_ * 2 > mask_) grow();
        return next;
    }

private:
    void allocate(size_t expected) {
        size_t size = 64;
        while (size < expected * 2) size *= 2;
        slots_.assign(size, Slot{0, -1});
        mask_ = size - 1;
    }

    void grow() {
        std::vector<Slot> old = std::move(slots_);
        allocate(old.size());
        for (const Slot& slot : old) {
            if (slot.index < 0) continue;
            size_t place = mixed(slot.key) & mask_;
            while (slots_[place].index >= 0) place = (place + 1) & mask_;
            slots_[place] = slot;
        }
    }

    std::vector<Slot> slots_;
    size_t mask_ = 0, count_ = 0;
};

template <typename T>
struct PermutohedralBuild {
    // What comes in.
    const T* features;  // feature j of point i at features[i * point_stride + j * feature_stride]
    int64_t points, point_stride, feature_stride;
    int dimension;
    const T* elevation;    // (d+1, d)
    const int32_t* batch;  // (N,) or null
    uint64_t seed;         // of random multipliers

    // What comes out.
    Buffer<int32_t> cell;             // (N,)
    Buffer<T> weights;                // (N, d+1)
    std::vector<int32_t> cell_vertices;  // (M, d+1)
    std::vector<int16_t> ranks;          // (M, d+1)
    std::vector<int32_t> coordinates;    // (V, [1 +] d) batch first if any, then the first d coordinates
    std::vector<uint64_t> keys;          // (V,)
    bool collided = false;

    VertexKey key;
    std::vector<KeyTable> table;  // of all vertices, once built

    int64_t num_vertices() const { return int64_t(keys.size()); }
    int64_t num_cells() const { return int64_t(cell_vertices.size()) / (dimension + 1); }

    bool build(int halo, int threads);
    void link(int32_t* out, int threads) const;

private:
    // A cell is known by its vertex of remainder 0 and by its ranks, four bits for each.
    struct CellKey {
        uint64_t base, ranks;
        bool operator==(const CellKey& other) const { return base == other.base && ranks == other.ranks; }
    };

    // What one thread found in its part of the points.
    struct Part {
        std::vector<CellKey> cell_keys;  // (m,)
        std::vector<int32_t> bases;      // (m, d + 1): batch, y of the simplex's remainder-0 vertex
        std::vector<int16_t> ranks;      // (m, d+1)
        std::vector<int32_t> corners;  // (m, d+1) vertices, numbered within the part
        std::vector<uint64_t> keys;    // (v,)
        std::vector<int32_t> vertices;  // (v, 2 + d): batch, k, y
        bool failed = false;
    };

    static constexpr int block = lanes<T>;

    // The simplices around a block of points, a vector a coordinate.
    struct Enclosing {
        explicit Enclosing(size_t size)
            : elevated(size), difference(size), weights(size), base(size), rank(size), bases(block * (size + 1)),
              ranks(block * size), rank_codes(block), base_keys(block) {}
        Buffer<Vector<T>> elevated, difference, weights;
        Buffer<Integers<T>> base, rank;
        std::vector<int32_t> bases;  // (block, d+1): batch, y of the remainder-0 vertex
        std::vector<int16_t> ranks;  // (block, d+1)
        std::vector<uint64_t> rank_codes, base_keys;
    };

    // For D dimensions, so that loops over them have known lengths, or for any number if D is 0.
    template <int D>
    void enclose(int64_t first, int count, Enclosing& found);
    template <int D>
    void elevate(int64_t first, int count, Vector<T>* elevated) const;
    void extent(int j, Range range, T& low, T& high) const;
    void make_key(int halo, int threads);
    template <int D>
    void find_cells(Part& part, Range range);
    void merge(std::vector<Part>& parts);
    void grow(int rings);

    int remainder(int64_t v) const {
        const int size = dimension + 1;
        const int32_t coordinate = coordinates[size_t(v) * width() + width() - 1];
        return int(((coordinate % size) + size) % size);
    }
    size_t width() const { return size_t(dimension) + (batch ? 1 : 0); }

    // What one step along an axis adds to the key of a vertex with a remainder. From k to k - 1, y_axis grows by
    // one; from 0 to d, every other y shrinks by one.
    uint64_t step(int axis, int remainder) const {
        const uint64_t own = axis < dimension ? key.multipliers[size_t(axis)] : 0;
        if (remainder) return own - 1;
        uint64_t all = 0;
        for (uint64_t multiplier : key.multipliers) all += multiplier;
        return own - all + uint64_t(dimension);
    }

    // Whether b lies `sign` steps along the axis from a; both are rows of coordinates.
    bool apart(const int32_t* a, const int32_t* b, int axis, int sign) const {
        const int ahead = batch ? 1 : 0;
        if (batch && a[0] != b[0]) return false;
        for (int j = 0; j < dimension; j++)
            if (b[ahead + j] != a[ahead + j] + sign * ((j == axis ? dimension + 1 : 0) - 1)) return false;
        return true;
    }

    uint64_t key_of(const int32_t* vertex) const {  // batch, k, y
        uint64_t value = key.offset + uint64_t(int64_t(vertex[1])) + key.batch_multiplier * uint64_t(int64_t(vertex[0]));
        for (int j = 0; j < dimension; j++) value += key.multipliers[size_t(j)] * uint64_t(int64_t(vertex[2 + j]));
        return value;
    }
};

template <typename T>
template <int D>
void PermutohedralBuild<T>::elevate(int64_t first, int count, Vector<T>* elevated) const {
    const int dimension = D ? D : this->dimension, size = dimension + 1;
    for (int k = 0; k < size; k++) elevated[k] = Vector<T>{};
    for (int j = 0; j < dimension; j++) {
        Vector<T> feature{};
        const T* from = features + first * point_stride + j * feature_stride;
        if (point_stride == 1 && count == block)
            feature = load(from);
        else
            for (int i = 0; i < count; i++) feature[i] = from[i * point_stride];
        for (int k = 0; k < size; k++) elevated[k] += elevation[k * dimension + j] * feature;
    }
}

// The least and the largest of feature j.
template <typename T>
void PermutohedralBuild<T>::extent(int j, Range range, T& low, T& high) const {
    const T* from = features + j * feature_stride;
    low = high = from[range.begin * point_stride];
    int64_t i = range.begin;
    if (point_stride == 1) {
        Vector<T> lows = broadcast(low), highs = lows;
        for (; i + lanes<T> <= range.end; i += lanes<T>) {
            const Vector<T> value = load(from + i);
            lows = value < lows ? value : lows;
            highs = value > highs ? value : highs;
        }
        for (int lane = 0; lane < lanes<T>; lane++) {
            low = std::min(low, T(lows[lane]));
            high = std::max(high, T(highs[lane]));
        }
    }
    for (; i < range.end; i++) {
        low = std::min(low, from[i * point_stride]);
        high = std::max(high, from[i * point_stride]);
    }
}

template <typename T>
inline Vector<T> nearest(Vector<T> x) {
    // Within the range that coordinates are checked to be in, adding 1.5 · 2^(bits of the mantissa) rounds.
    const T shift = sizeof(T) == 4 ? T(12582912.0) : T(6755399441055744.0);
    return (x + shift) - shift;
}

template <typename T>
void PermutohedralBuild<T>::make_key(int halo, int threads) {
    const int size = dimension + 1;
    // The extent of each feature, and so of each coordinate.
    const size_t d = size_t(dimension);
    const int parts = int(std::min<int64_t>(points, useful_threads(threads, points * dimension, 1 << 18)));
    std::vector<T> low(d * size_t(parts)), high(d * size_t(parts));
    parallel(parts, [&](Team& team, int thread) {
        for (int part = thread; part < parts; part += team.threads)
            for (int j = 0; j < dimension; j++)
                extent(j, share(points, part, parts), low[size_t(part) * d + size_t(j)], high[size_t(part) * d + size_t(j)]);
    });
    for (int part = 1; part < parts; part++)
        for (size_t j = 0; j < d; j++) {
            low[j] = std::min(low[j], low[size_t(part) * d + j]);
            high[j] = std::max(high[j], high[size_t(part) * d + j]);
        }
    int32_t last_batch = 0;
    if (batch)
        for (int64_t i = 0; i < points; i++) last_batch = std::max(last_batch, batch[i]);

    key.multipliers.assign(size_t(dimension), 0);
    key.exact = true;
    // y lies within one of the rounded coordinate, and a step further for neighbours, with room for rounding, and for each
    // ring of the halo.
    std::vector<int64_t> origin(size_t(dimension), 0);
    unsigned __int128 product = unsigned(size);
    for (int j = 0; j < dimension; j++) {
        double lowest = 0, highest = 0;
        for (int i = 0; i < dimension; i++) {
            const double e = elevation[j * dimension + i], at_low = e * low[size_t(i)], at_high = e * high[size_t(i)];
            lowest += std::min(at_low, at_high);
            highest += std::max(at_low, at_high);
        }
        const int64_t from = int64_t(std::floor(lowest / size)) - 4 - halo;
        const int64_t to = int64_t(std::ceil(highest / size)) + 4 + halo;
        origin[size_t(j)] = from;
        key.multipliers[size_t(j)] = uint64_t(product);
        product *= unsigned(to - from + 1);
        if (product >> 63) key.exact = false, product = 1;
    }
    key.batch_multiplier = uint64_t(product);
    product *= unsigned(last_batch) + 1u;
    if (product >> 63) key.exact = false;
    if (!key.exact) {
        uint64_t state = seed;
        const auto draw = [&state]() {  // splitmix64
            uint64_t z = (state += 0x9E3779B97F4A7C15u);
            z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
            z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
            return (z ^ (z >> 31)) | 1u;
        };
        for (auto& multiplier : key.multipliers) multiplier = draw();
        key.batch_multiplier = draw();
    }
    key.offset = 0;
    for (int j = 0; j < dimension; j++) key.offset -= key.multipliers[size_t(j)] * uint64_t(origin[size_t(j)]);
}

template <typename T>
template <int D>
void PermutohedralBuild<T>::enclose(int64_t first, int count, Enclosing& found) {
    const int dimension = D ? D : this->dimension, size = dimension + 1;
    Vector<T>*const elevated = found.elevated.data(), *const difference = found.difference.data();
    Vector<T>* const by_rank = found.weights.data();
    Integers<T>*const base = found.base.data(), *const rank = found.rank.data();
    elevate<D>(first, count, elevated);
    const T inverse = T(1) / T(size);
    Vector<T> excess{};
    for (int k = 0; k < size; k++) {
        const Vector<T> rounded = nearest<T>(elevated[k] * inverse);
        base[k] = __builtin_convertvector(rounded, Integers<T>);
        difference[k] = elevated[k] - rounded * T(size);
        excess += rounded;
        rank[k] = Integers<T>{} + (size - 1 - k);
    }
    for (int i = 0; i < size - 1; i++)
        for (int j = i + 1; j < size; j++) {
            const Integers<T> first_is_larger = difference[i] >= difference[j];  // -1 or 0
            rank[j] -= first_is_larger;
            rank[i] += first_is_larger;
        }
    // Where the rounded coordinates do not sum to zero, those of the lowest or highest rank move by one.
    const Integers<T> surplus = __builtin_convertvector(excess, Integers<T>);
    for (int k = 0; k < size; k++) {
        Integers<T> r = rank[k] + surplus;
        const Integers<T> below = r < 0, above = r >= size;  // -1 or 0
        rank[k] = r = r - size * below + size * above;
        base[k] = base[k] - below + above;
        difference[k] = elevated[k] - T(size) * __builtin_convertvector(base[k], Vector<T>);
    }
    // Weights of the corners, from the differences in the order of their ranks.
    for (int k = 0; k < size; k++) {
        Vector<T> of_rank{};
        for (int j = 0; j < size; j++) of_rank = rank[j] == k ? difference[j] : of_rank;
        by_rank[k] = of_rank;
    }
    T* const to = weights.data() + first * size;
    for (int k = 0; k < size; k++) {
        const Vector<T> w = k == 0 ? T(1) - (by_rank[0] - by_rank[dimension]) * inverse
                                   : (by_rank[dimension - k] - by_rank[dimension - k + 1]) * inverse;
        for (int i = 0; i < count; i++) to[i * size + k] = w[i];
    }
    for (int i = 0; i < count; i++) {
        int32_t* b = &found.bases[size_t(i * size)];
        int16_t* r = &found.ranks[size_t(i * size)];
        b[0] = batch ? batch[first + i] : 0;
        uint64_t code = 0, place = key.offset + key.batch_multiplier * uint64_t(int64_t(b[0]));
        for (int j = 0; j < dimension; j++) {
            b[1 + j] = int32_t(base[j][i]);
            r[j] = int16_t(rank[j][i]);
            place += key.multipliers[size_t(j)] * uint64_t(int64_t(b[1 + j]));
            code = (code << 4 | code >> 60) ^ uint64_t(r[j]);
        }
        r[dimension] = int16_t(rank[dimension][i]);
        found.base_keys[size_t(i)] = place;
        found.rank_codes[size_t(i)] = code;
    }
}

template <typename T>
template <int D>
void PermutohedralBuild<T>::find_cells(Part& part, Range range) {
    const int dimension = D ? D : this->dimension, size = dimension + 1;
    KeyTable cells(size_t(range.end - range.begin) / 4), vertices(size_t(range.end - range.begin) / 8);
    Enclosing found{size_t(size)};
    std::vector<int32_t> vertex(size_t(dimension) + 2);
    std::vector<uint64_t> corner_keys(size_t(size), 0), multiplier_of_rank(size_t(size), 0);
    const bool exact = key.exact && dimension <= 15;
    CellKey previous_key{0, 0};
    int32_t previous = -1;
    for (int64_t first = range.begin; first < range.end; first += block) {
        const int count = int(std::min<int64_t>(block, range.end - first));
        enclose<D>(first, count, found);
        const auto slot_key = [&](int i) { return found.base_keys[size_t(i)] + mixed(found.rank_codes[size_t(i)] + 1); };
        for (int i = 0; i < count; i++) cells.prefetch(slot_key(i));
        for (int i = 0; i < count; i++) {
            const int16_t* r = &found.ranks[size_t(i * size)];
            const int32_t* b = &found.bases[size_t(i * size)];
            const CellKey own{found.base_keys[size_t(i)], found.rank_codes[size_t(i)]};
            const auto same = [&](int32_t cell) {
                return own == part.cell_keys[size_t(cell)] &&
                       (exact || (std::equal(b, b + size, &part.bases[size_t(cell) * size_t(size)]) &&
                                  std::equal(r, r + size, &part.ranks[size_t(cell) * size_t(size)])));
            };
            if (previous >= 0 && own == previous_key && same(previous)) {  // as neighbouring pixels often are
                cell[size_t(first + i)] = previous;
                continue;
            }
            const int32_t fresh = int32_t(part.cell_keys.size());
            previous_key = own;
            previous = cells.insert(slot_key(i), fresh, same);
            cell[size_t(first + i)] = previous;
            if (previous != fresh) continue;
            part.cell_keys.push_back(own);
            part.bases.insert(part.bases.end(), b, b + size);
            part.ranks.insert(part.ranks.end(), r, r + size);
            // Corner k has the remainder k and y_j = b_j - [rank_j > d - k]: one coordinate more wraps at each corner.
            for (int j = 0; j < dimension; j++) multiplier_of_rank[size_t(r[j])] = key.multipliers[size_t(j)];
            multiplier_of_rank[size_t(r[dimension])] = 0;
            corner_keys[0] = own.base;
            for (int k = 1; k < size; k++)
                corner_keys[size_t(k)] = corner_keys[size_t(k - 1)] + 1 - multiplier_of_rank[size_t(dimension - k + 1)];
            for (int k = 0; k < size; k++) vertices.prefetch(corner_keys[size_t(k)]);
            for (int k = 0; k < size; k++) {
                const auto write_vertex = [&]() {
                    vertex[0] = b[0];
                    vertex[1] = k;
                    for (int j = 0; j < dimension; j++) vertex[size_t(2 + j)] = b[1 + j] - (r[j] > dimension - k);
                };
                const auto same_vertex = [&](int32_t other) {
                    if (key.exact) return true;
                    write_vertex();
                    if (!std::equal(vertex.begin(), vertex.end(), &part.vertices[size_t(other) * vertex.size()]))
                        part.failed = true;
                    return true;
                };
                const int32_t next = int32_t(part.keys.size());
                const int32_t index = vertices.insert(corner_keys[size_t(k)], next, same_vertex);
                if (index == next) {
                    write_vertex();
                    part.keys.push_back(corner_keys[size_t(k)]);
                    part.vertices.insert(part.vertices.end(), vertex.begin(), vertex.end());
                }
                part.corners.push_back(index);
            }
        }
    }
}

template <typename T>
void PermutohedralBuild<T>::merge(std::vector<Part>& parts) {
    const int size = dimension + 1;
    const size_t length = size_t(dimension) + 2;
    size_t most = 0, cells = 0;
    for (const Part& part : parts) {
        most += part.keys.size();
        cells += part.corners.size();
        collided = collided || part.failed;
    }
    table.clear();
    table.emplace_back(most);
    keys.reserve(most);
    cell_vertices.reserve(cells);
    ranks.reserve(cells);
    std::vector<int32_t> vertices, number;
    vertices.reserve(most * length);
    std::vector<int32_t> first_cell;
    constexpr size_t ahead = 16;
    for (Part& part : parts) {
        first_cell.push_back(int32_t(cell_vertices.size() / size_t(size)));
        number.resize(part.keys.size());
        for (size_t v = 0; v < part.keys.size(); v++) {
            if (v + ahead < part.keys.size()) table[0].prefetch(part.keys[v + ahead]);
            const int32_t* vertex = &part.vertices[v * length];
            const auto same = [&](int32_t other) {
                if (!key.exact && !std::equal(vertex, vertex + length, &vertices[size_t(other) * length])) collided = true;
                return true;
            };
            const int32_t next = int32_t(keys.size());
            number[v] = table[0].insert(part.keys[v], next, same);
            if (number[v] == next) {
                keys.push_back(part.keys[v]);
                vertices.insert(vertices.end(), vertex, vertex + length);
            }
        }
        for (int32_t corner : part.corners) cell_vertices.push_back(number[size_t(corner)]);
        ranks.insert(ranks.end(), part.ranks.begin(), part.ranks.end());
    }
    for (size_t i = 1; i < parts.size(); i++) {
        const Range range = share(points, int(i), int(parts.size()));
        for (int64_t point = range.begin; point < range.end; point++) cell[size_t(point)] += first_cell[i];
    }
    coordinates.reserve(keys.size() * (length - 1));
    for (size_t v = 0; v < keys.size(); v++) {
        const int32_t* vertex = &vertices[v * length];
        if (batch) coordinates.push_back(vertex[0]);
        for (int j = 0; j < dimension; j++) coordinates.push_back(size * vertex[2 + j] + vertex[1]);
    }
}

// Add rings of neighbours around the vertices.
template <typename T>
void PermutohedralBuild<T>::grow(int rings) {
    const int size = dimension + 1, ahead = batch ? 1 : 0;
    std::vector<int32_t> fresh(width());
    int64_t begin = 0;
    for (int ring = 0; ring < rings; ring++) {
        const int64_t end = num_vertices();
        for (int64_t v = begin; v < end; v++) {
            const int k = remainder(v);
            for (int axis = 0; axis < size; axis++)
                for (int sign = 1; sign >= -1; sign -= 2) {
                    // A step back is one that leads here from the vertex of the next remainder.
                    const uint64_t to = sign > 0 ? keys[size_t(v)] + step(axis, k)
                                                 : keys[size_t(v)] - step(axis, k == dimension ? 0 : k + 1);
                    const int32_t* here = &coordinates[size_t(v) * width()];
                    const int32_t next = int32_t(num_vertices());
                    const int32_t found = table[0].insert(to, next, [&](int32_t other) {
                        if (!key.exact && !apart(here, &coordinates[size_t(other) * width()], axis, sign)) collided = true;
                        return true;
                    });
                    if (found != next) continue;
                    std::copy(here, here + width(), fresh.begin());
                    for (int j = 0; j < dimension; j++) fresh[size_t(ahead + j)] += sign * ((j == axis ? size : 0) - 1);
                    keys.push_back(to);
                    coordinates.insert(coordinates.end(), fresh.begin(), fresh.end());
                }
        }
        begin = end;
    }
}

// Find cells, weights and vertices, and rings around them; false if two vertices share a key, and the seed must be
// changed.
template <typename T>
bool PermutohedralBuild<T>::build(int halo, int threads) {
    const int size = dimension + 1;
    cell.resize(size_t(points));
    weights.resize(size_t(points) * size_t(size));
    threads = useful_threads(threads, points * size, 1 << 14);
    if (points) make_key(halo, threads);
    std::vector<Part> parts(static_cast<size_t>(threads));
    std::vector<std::exception_ptr> errors(static_cast<size_t>(threads));
    parallel(threads, [&](Team& team, int thread) {
        for (int i = thread; i < threads; i += team.threads) {
            try {
                Part& part = parts[size_t(i)];
                const Range range = share(points, i, threads);
                switch (dimension) {
                    case 5: find_cells<5>(part, range); break;  // colour images
                    case 6: find_cells<6>(part, range); break;  // videos and clouds in colour
                    case 7: find_cells<7>(part, range); break;
                    default: find_cells<0>(part, range);
                }
            } catch (...) {
                errors[size_t(i)] = std::current_exception();
            }
        }
    });
    for (auto& error : errors)
        if (error) std::rethrow_exception(error);
    merge(parts);
    grow(halo);
    return !collided;
}

// out[axis, v] = the vertices one step behind v and one step ahead, or -1: (d+1, V, 2).
template <typename T>
void PermutohedralBuild<T>::link(int32_t* out, int threads) const {
    const int size = dimension + 1;
    const int64_t vertices = num_vertices();
    if (vertices == 0) return;
    parallel(useful_threads(threads, vertices * size, 1 << 14), [&](Team& team, int thread) {
        const Range range = share(vertices, thread, team.threads);
        for (int axis = 0; axis < size; axis++)
            for (int64_t v = range.begin; v < range.end; v++) out[2 * (axis * vertices + v)] = -1;
        team.wait();
        for (int axis = 0; axis < size; axis++) {
            int32_t* link = out + 2 * axis * vertices;
            const uint64_t steps = step(axis, 1), from_0 = step(axis, 0);
            const auto target = [&](int64_t v) { return keys[size_t(v)] + (remainder(v) ? steps : from_0); };
            constexpr int64_t ahead = 12;
            for (int64_t v = range.begin; v < range.begin + ahead && v < range.end; v++) table[0].prefetch(target(v));
            for (int64_t v = range.begin; v < range.end; v++) {
                if (v + ahead < range.end) table[0].prefetch(target(v + ahead));
                const int32_t found = table[0].find(target(v), [&](int32_t other) {
                    return key.exact || apart(&coordinates[size_t(v) * width()], &coordinates[size_t(other) * width()], axis, 1);
                });
                link[2 * v + 1] = found;
                if (found >= 0) link[2 * int64_t(found)] = int32_t(v);
            }
        }
    });
}

}  // namespace hdcrf
