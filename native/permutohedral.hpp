// Building a permutohedral lattice: the kernel of lattice/elevation.py, lattice/simplex.py and the look-up of
// neighbours. What is computed is explained there; here is how.
//
// A vertex with the remainder k has coordinates x_j = (d+1) y_j + k, so it is known by (k, y_0 … y_{d-1}), the last
// coordinate being implied. That becomes one 64-bit key, linear in k and y: steps along an axis are additions to the
// key. Where the extents multiply to more than 2⁶³, the multipliers are random odd numbers, and every match is
// compared in full; should two vertices share a key, `build` says so, and its caller draws other multipliers.
//
// Threads find the cells of one part of the points each, and then the vertices of one shard of the keys each, so that
// no two threads write to one table; there are 2^n shards, so some threads may have none. Vertices are numbered by
// where they come first, whatever thread found them.

#pragma once

#include <algorithm>
#include <atomic>
#include <exception>

#include "coordinate_range.hpp"
#include "key_table.hpp"
#include "threads.hpp"
#include "vectors.hpp"

namespace hdcrf {

struct VertexKey {
    std::vector<uint64_t> multipliers;  // of y_0 … y_{d-1}; that of the remainder is 1
    uint64_t batch_multiplier = 0;
    uint64_t offset = 0;
    bool exact = false;       // no two vertices share a key
    uint64_t rank_codes = 0;  // where key · rank_codes + code of the ranks tells all cells apart; otherwise 0
};

// Run work(i) for each i below `count` on that many threads, and throw what one of them threw.
template <typename Work>
void each_of(int count, const Work& work) {
    std::vector<std::exception_ptr> errors(static_cast<size_t>(count));
    parallel(count, [&](Team& team, int thread) {
        for (int i = thread; i < count; i += team.threads) {
            try {
                work(i);
            } catch (...) {
                errors[size_t(i)] = std::current_exception();
            }
        }
    });
    for (auto& error : errors)
        if (error) std::rethrow_exception(error);
}

template <typename T>
class PermutohedralBuild {
public:
    // Of points, from the (d,) scales of the elevation, and their (N,) batch indices or null; the seed is that of the
    // random multipliers.
    PermutohedralBuild(Points<T> features, const T* scales, const int32_t* batch, uint64_t seed)
        : features(features), points(features.count), dimension(features.dimension), scales(scales), batch(batch),
          seed(seed) {}

    // What comes out.
    int64_t num_cells = 0;
    Buffer<int32_t> cell;           // (N,)
    Buffer<T> weights;              // (N, d+1)
    Buffer<int32_t> cell_vertices;  // (M, d+1)
    Buffer<int16_t> ranks;          // (M, d+1)
    Buffer<int32_t> coordinates;    // (V, [1 +] d) batch first if any, then the first d coordinates

    int64_t num_vertices() const { return int64_t(keys.size()); }

    // To be called once.
    bool build(int halo, int threads);
    void link(int32_t* out, int threads) const;

private:
    const Points<T> features;
    const int64_t points;
    const int dimension;
    const T* const scales;
    const int32_t* const batch;
    const uint64_t seed;

    VertexKey key;
    std::vector<uint64_t> keys;       // (V,)
    std::vector<int16_t> remainders;  // (V,)
    std::atomic<bool> collided{false};

    // The cells that one thread found in its part of the points: for each, the remainder-0 vertex of its simplex, and
    // the ranks of the coordinates. There is room for a cell for each point; memory is taken when it is written to.
    struct Part {
        Part(Range points, size_t size)
            : points(points), base_keys(size_t(points.end - points.begin)),
              bases(size_t(points.end - points.begin) * size), ranks(size_t(points.end - points.begin) * size) {}
        Range points;
        Buffer<uint64_t> base_keys;    // (m,)
        Buffer<int32_t> bases;         // (m, d+1): batch, y_0 … y_{d-1}
        Buffer<int16_t> ranks;         // (m, d+1)
        int64_t cells = 0, first = 0;  // m, and the number of the first among all cells
    };
    std::vector<Part> parts;

    // The vertices whose keys one thread answers for.
    struct Shard {
        explicit Shard(size_t expected) : table(expected) {}
        KeyTable table;                 // from keys to numbers within the shard
        std::vector<uint64_t> keys;     // (v,)
        std::vector<int64_t> corners;   // (v,) where it was found first: cell · (d+1) + remainder
        std::vector<int32_t> numbers;   // (v,) among all vertices
    };
    std::vector<Shard> shards;  // 2^log_shards
    int log_shards = 0;

    static constexpr uint32_t first_time = uint32_t(1) << 31;
    static constexpr int block = lanes<T>;
    static constexpr int blocks = 8;  // enclosed before they are looked up, so that memory is asked for in time

    // The simplices around some blocks of points, a vector a coordinate.
    struct Enclosing {
        explicit Enclosing(size_t size)
            : elevated(size), difference(size), by_rank(size), base(blocks * size), rank(blocks * size),
              base_keys(blocks * block), cell_keys(blocks * block) {}
        Buffer<Vector<T>> elevated, difference, by_rank;
        Buffer<Integers<T>> base, rank;
        std::vector<uint64_t> base_keys, cell_keys;
    };

    // For D dimensions, so that loops over them have known lengths, or for any number if D is 0.
    template <int D>
    void enclose(int64_t first, int count, int at, Enclosing& found);
    template <int D>
    void elevate(int64_t first, int count, Vector<T>* elevated) const;
    void make_key(int halo, int threads);
    template <int D>
    void find_cells(Part& part);
    template <int D>
    void find_vertices(int own);
    void number(Team& team, int thread);
    void grow(int rings);

    // The shard of a key: there are 2^log_shards.
    size_t owner(uint64_t mixed_key) const { return size_t(mixed_key >> 40) & (shards.size() - 1); }

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

    // Write batch and coordinates of corner k of a part's cell. It has the remainder k and
    // y_j = b_j - [rank_j > d - k]: one coordinate more wraps at each corner.
    void write_corner(const Part& part, int64_t cell, int k, int32_t* to) const {
        const int size = dimension + 1;
        const int32_t* base = part.bases.data() + cell * size;
        const int16_t* rank = part.ranks.data() + cell * size;
        if (batch) *to++ = base[0];
        for (int j = 0; j < dimension; j++) to[j] = size * (base[1 + j] - (rank[j] > dimension - k)) + k;
    }

    // The part with a cell, numbered among all.
    const Part& part_of(int64_t cell) const {
        size_t part = parts.size() - 1;
        while (cell < parts[part].first) part--;
        return parts[part];
    }

    // Whether two corners, numbered through all cells, are one vertex.
    bool same_vertex(int64_t one, int64_t other) const {
        const int size = dimension + 1, k = int(one % size);
        if (k != int(other % size)) return false;
        const Part &part = part_of(one / size), &other_part = part_of(other / size);
        const int64_t at = (one / size - part.first) * size, other_at = (other / size - other_part.first) * size;
        const int32_t *base = part.bases.data() + at, *other_base = other_part.bases.data() + other_at;
        const int16_t *rank = part.ranks.data() + at, *other_rank = other_part.ranks.data() + other_at;
        for (int j = 0; j < dimension; j++)
            if (base[1 + j] - (rank[j] > dimension - k) != other_base[1 + j] - (other_rank[j] > dimension - k))
                return false;
        return base[0] == other_base[0];
    }
};

// A product, rounded by itself: fused with the sum that it is part of, it would put points near the border of two
// simplices on another side than the reference does.
template <typename T>
inline Vector<T> rounded(Vector<T> product) {
#if defined(__AVX__)
    __asm__("" : "+x"(product));
#else
    __asm__("" : "+m"(product));
#endif
    return product;
}

template <typename T>
template <int D>
void PermutohedralBuild<T>::elevate(int64_t first, int count, Vector<T>* elevated) const {
    const int dimension = D ? D : this->dimension;
    const int64_t point_stride = features.point_stride;
    Vector<T> total{};
#pragma GCC unroll 8
    for (int k = dimension; k > 0; k--) {
        Vector<T> feature{};
        const T* from = features.data + first * point_stride + (k - 1) * features.feature_stride;
        if (point_stride == 1 && count == block)
            feature = load(from);
        else
            for (int i = 0; i < count; i++) feature[i] = from[i * point_stride];
        const Vector<T> scaled = rounded<T>(scales[k - 1] * feature);
        elevated[k] = total - rounded<T>(T(k) * scaled);
        total += scaled;
    }
    elevated[0] = total;
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
    std::vector<T> low(static_cast<size_t>(dimension)), high(low.size());
    extents(features, low.data(), high.data(), threads);
    int32_t last_batch = 0;
    if (batch)
        for (int64_t i = 0; i < points; i++) last_batch = std::max(last_batch, batch[i]);

    key.multipliers.assign(size_t(dimension), 0);
    key.exact = true;
    // y lies within one of the rounded coordinate, and a step further for neighbours, with room for rounding, and for
    // each ring of the halo.
    std::vector<int64_t> origin(size_t(dimension), 0);
    unsigned __int128 product = unsigned(size);
    for (int j = 0; j < dimension; j++) {
        double lowest = 0, highest = 0;
        for (int i = std::max(j - 1, 0); i < dimension; i++) {  // what coordinate j is a sum of
            const double e = i < j ? -double(j) * scales[i] : scales[i];
            const double at_low = e * low[size_t(i)], at_high = e * high[size_t(i)];
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
    unsigned __int128 codes = 1;
    for (int j = 0; j < dimension && !(codes >> 31); j++) codes *= unsigned(size);
    key.rank_codes = key.exact && !(codes >> 31) && !((product * codes) >> 63) ? uint64_t(codes) : 0;
    key.offset = 0;
    for (int j = 0; j < dimension; j++) key.offset -= key.multipliers[size_t(j)] * uint64_t(origin[size_t(j)]);
}

// Find the simplices around `count` points from `first` on, and put them at place `at`, a multiple of a block.
template <typename T>
template <int D>
void PermutohedralBuild<T>::enclose(int64_t first, int count, int at, Enclosing& found) {
    const int dimension = D ? D : this->dimension, size = dimension + 1;
    // Where their number is known, what is worked with can stay in registers.
    Vector<T> known[3][D ? D + 1 : 1];
    Vector<T>* const elevated = D ? known[0] : found.elevated.data();
    Vector<T>* const difference = D ? known[1] : found.difference.data();
    Vector<T>* const by_rank = D ? known[2] : found.by_rank.data();
    Integers<T> known_rank[D ? D + 1 : 1];
    Integers<T>* const base = found.base.data() + at / block * size;
    Integers<T>* const to_rank = found.rank.data() + at / block * size;
    Integers<T>* const rank = D ? known_rank : to_rank;
    elevate<D>(first, count, elevated);
    const T inverse = T(1) / T(size);
    Vector<T> excess{};
#pragma GCC unroll 8
    for (int k = 0; k < size; k++) {
        const Vector<T> multiple = nearest<T>(rounded<T>(elevated[k] * inverse));
        base[k] = __builtin_convertvector(multiple, Integers<T>);
        difference[k] = elevated[k] - multiple * T(size);
        excess += multiple;
        rank[k] = Integers<T>{} + (size - 1 - k);
    }
#pragma GCC unroll 8
    for (int i = 0; i < size - 1; i++)
#pragma GCC unroll 8
        for (int j = i + 1; j < size; j++) {
            const Integers<T> first_is_larger = difference[i] >= difference[j];  // -1 or 0
            rank[j] -= first_is_larger;
            rank[i] += first_is_larger;
        }
    // Where the rounded coordinates do not sum to zero, those of the lowest or highest rank move by one.
    const Integers<T> surplus = __builtin_convertvector(excess, Integers<T>);
    Unsigned<T> codes{};  // of the ranks: wraps around in many dimensions, and is then only hashed
#pragma GCC unroll 8
    for (int k = 0; k < size; k++) {
        Integers<T> r = rank[k] + surplus;
        const Integers<T> below = r < 0, above = r >= size;  // -1 or 0
        to_rank[k] = rank[k] = r = r - size * below + size * above;
        if (k < dimension) codes = codes * size + Unsigned<T>(r);
        base[k] = base[k] - below + above;
        difference[k] = elevated[k] - T(size) * __builtin_convertvector(base[k], Vector<T>);
    }
    // Weights of the corners, from the differences in the order of their ranks.
#pragma GCC unroll 8
    for (int k = 0; k < size; k++) {
        Vector<T> of_rank{};
#pragma GCC unroll 8
        for (int j = 0; j < size; j++) of_rank = rank[j] == k ? difference[j] : of_rank;
        by_rank[k] = of_rank;
    }
    T* const to = weights.data() + first * size;
#pragma GCC unroll 8
    for (int k = 0; k < size; k++) {
        const Vector<T> w = k == 0 ? T(1) - (by_rank[0] - by_rank[dimension]) * inverse
                                   : (by_rank[dimension - k] - by_rank[dimension - k + 1]) * inverse;
        for (int i = 0; i < count; i++) to[i * size + k] = w[i];
    }
    for (int i = 0; i < count; i++) {
        uint64_t place = key.offset;
        if (batch) place += key.batch_multiplier * uint64_t(int64_t(batch[first + i]));
#pragma GCC unroll 8
        for (int j = 0; j < dimension; j++) place += key.multipliers[size_t(j)] * uint64_t(int64_t(base[j][i]));
        const uint64_t code = codes[i];
        found.base_keys[size_t(at + i)] = place;
        found.cell_keys[size_t(at + i)] = key.rank_codes ? place * key.rank_codes + code : place + mixed(code + 1);
    }
}

template <typename T>
template <int D>
void PermutohedralBuild<T>::find_cells(Part& part) {
    const Range range = part.points;
    const int dimension = D ? D : this->dimension, size = dimension + 1;
    KeyTable cells(size_t(range.end - range.begin) / 4);
    Enclosing found{size_t(size)};
    uint64_t previous_key = 0;
    int32_t previous = -1;
    for (int64_t first = range.begin; first < range.end; first += blocks * block) {
        const int count = int(std::min<int64_t>(blocks * block, range.end - first));
        for (int at = 0; at < count; at += block) enclose<D>(first + at, std::min(block, count - at), at, found);
        for (int i = 0; i < count; i++) cells.prefetch(mixed(found.cell_keys[size_t(i)]));
        for (int i = 0; i < count; i++) {
            const Integers<T>* const base = found.base.data() + i / block * size;
            const Integers<T>* const rank = found.rank.data() + i / block * size;
            const int lane = i % block;
            const int32_t of_batch = batch ? batch[first + i] : 0;
            const auto same = [&](int32_t other) {
                if (key.rank_codes) return true;
                const int32_t* other_base = part.bases.data() + int64_t(other) * size;
                const int16_t* other_rank = part.ranks.data() + int64_t(other) * size;
                if (other_base[0] != of_batch) return false;
                for (int j = 0; j < dimension; j++)
                    if (other_base[1 + j] != base[j][lane] || other_rank[j] != rank[j][lane]) return false;
                return true;
            };
            const uint64_t own = found.cell_keys[size_t(i)];
            if (previous < 0 || own != previous_key || !same(previous)) {  // as neighbouring pixels often are
                const int32_t next = int32_t(part.cells);
                previous = cells.insert(own, mixed(own), next, same);
                previous_key = own;
                if (previous == next) {
                    part.base_keys[size_t(part.cells)] = found.base_keys[size_t(i)];
                    int32_t* const new_base = part.bases.data() + part.cells * size;
                    int16_t* const new_rank = part.ranks.data() + part.cells * size;
                    part.cells++;
                    new_base[0] = of_batch;
                    for (int j = 0; j < dimension; j++) new_base[1 + j] = int32_t(base[j][lane]);
                    for (int j = 0; j < size; j++) new_rank[j] = int16_t(rank[j][lane]);
                }
            }
            cell[size_t(first + i)] = previous;
        }
    }
}

// Find those vertices of all cells that are in one's own shard, and write down at each corner which vertex of which
// shard it is, as number << log_shards | shard, and in the highest bit whether it is there for the first time.
template <typename T>
template <int D>
void PermutohedralBuild<T>::find_vertices(int own) {
    const int dimension = D ? D : this->dimension, size = dimension + 1;
    constexpr size_t together = 16;  // cells
    Shard& shard = shards[size_t(own)];
    std::vector<uint64_t> corner_keys(together * size_t(size)), hashes(together * size_t(size));
    std::vector<int> corners(together * size_t(size));  // those that are in the shard
    // What coordinate j of a rank takes from the key at corner k, once it has wrapped, padded to whole vectors: for
    // known dimensions.
    constexpr int padded = D ? (D + 4) / 4 * 4 : 1;
    std::vector<uint64_t> wraps(static_cast<size_t>(D * (D + 1) * padded), 0);
    std::vector<uint64_t> multiplier_of_rank(size_t(size), 0);  // for others
    if (D)
        for (int j = 0; j < dimension; j++)
            for (int rank = 0; rank < size; rank++)
                for (int k = dimension - rank + 1; k < size; k++)
                    wraps[size_t((j * size + rank) * padded + k)] = key.multipliers[size_t(j)];
    const auto keys_of_corners = [&](const int16_t* rank, uint64_t base, uint64_t* to) {
        if (!D) {
            for (int j = 0; j < dimension; j++) multiplier_of_rank[size_t(rank[j])] = key.multipliers[size_t(j)];
            multiplier_of_rank[size_t(rank[dimension])] = 0;
            to[0] = base;
            for (int k = 1; k < size; k++) to[k] = to[k - 1] + 1 - multiplier_of_rank[size_t(dimension - k + 1)];
            return;
        }
        uint64_t corner[padded];
#pragma GCC unroll 8
        for (int k = 0; k < padded; k++) corner[k] = base + uint64_t(k);
#pragma GCC unroll 8
        for (int j = 0; j < dimension; j++) {
            const uint64_t* wrap = &wraps[size_t((j * size + rank[j]) * padded)];
#pragma GCC unroll 8
            for (int k = 0; k < padded; k++) corner[k] -= wrap[k];
        }
        std::copy_n(corner, D + 1, to);
    };
    const auto find = [&](const Part& part, int64_t first, int count) {
        for (int i = 0; i < count; i++)
            keys_of_corners(
                part.ranks.data() + (first + i) * size, part.base_keys[size_t(first + i)],
                &corner_keys[size_t(i * size)]
            );
        int owned = 0;
        for (int i = 0; i < count * size; i++) {
            const uint64_t hash = mixed(corner_keys[size_t(i)]);
            hashes[size_t(owned)] = hash;
            corners[size_t(owned)] = i;
            owned += owner(hash) == size_t(own);
        }
        for (int i = 0; i < owned; i++) shard.table.prefetch(hashes[size_t(i)]);
        for (int i = 0; i < owned; i++) {
            const int place = corners[size_t(i)];
            const int64_t at = (part.first + first) * size + place;
            const int32_t next = int32_t(shard.keys.size());
            const auto same = [&](int32_t other) {
                if (!key.exact && !same_vertex(at, shard.corners[size_t(other)])) collided = true;
                return true;
            };
            const int32_t index = shard.table.insert(corner_keys[size_t(place)], hashes[size_t(i)], next, same);
            if (index == next) {
                shard.keys.push_back(corner_keys[size_t(place)]);
                shard.corners.push_back(at);
            }
            const uint32_t is_new = index == next ? first_time : 0;
            cell_vertices[size_t(at)] = int32_t(uint32_t(index) << log_shards | uint32_t(own) | is_new);
        }
    };
    for (const Part& part : parts)
        for (int64_t first = 0; first < part.cells; first += together)
            find(part, first, int(std::min<int64_t>(together, part.cells - first)));
}

// Number the vertices in the order of the corners where they are first, and the cells of all parts.
template <typename T>
void PermutohedralBuild<T>::number(Team& team, int thread) {
    const int size = dimension + 1;
    const uint32_t last_shard = uint32_t(shards.size()) - 1;
    for (size_t p = size_t(thread); p < parts.size(); p += size_t(team.threads)) {
        const Part& part = parts[p];
        std::copy_n(part.ranks.data(), part.cells * size, ranks.data() + part.first * size);
        if (part.first)
            for (int64_t i = part.points.begin; i < part.points.end; i++) cell[size_t(i)] += int32_t(part.first);
        size_t v = 0;  // as many vertices as there are in the parts before
        for (const Shard& shard : shards) {
            const auto begin = shard.corners.begin();
            v += size_t(std::lower_bound(begin, shard.corners.end(), part.first * size) - begin);
        }
        for (int64_t own = 0; own < part.cells; own++)
            for (int k = 0; k < size; k++) {
                const uint32_t code = uint32_t(cell_vertices[size_t((part.first + own) * size + k)]);
                if (!(code & first_time)) continue;
                Shard& shard = shards[code & last_shard];
                const size_t index = (code & ~first_time) >> log_shards;
                shard.numbers[index] = int32_t(v);
                keys[v] = shard.keys[index];
                remainders[v] = int16_t(k);
                write_corner(part, own, k, &coordinates[v++ * width()]);
            }
    }
    team.wait();
    const Range range = share(num_cells * size, thread, team.threads);
    for (int64_t corner = range.begin; corner < range.end; corner++) {
        const uint32_t code = uint32_t(cell_vertices[size_t(corner)]) & ~first_time;
        cell_vertices[size_t(corner)] = shards[code & last_shard].numbers[code >> log_shards];
    }
}

// Add rings of neighbours around the vertices.
template <typename T>
void PermutohedralBuild<T>::grow(int rings) {
    const int size = dimension + 1, ahead = batch ? 1 : 0;
    int64_t begin = 0;
    for (int ring = 0; ring < rings; ring++) {
        const int64_t end = num_vertices(), most = end + (end - begin) * 2 * size;
        Buffer<int32_t> larger(size_t(most) * width());
        std::copy_n(coordinates.data(), size_t(end) * width(), larger.data());
        coordinates = std::move(larger);
        for (int64_t v = begin; v < end; v++) {
            const int k = remainders[size_t(v)];
            for (int axis = 0; axis < size; axis++)
                for (int sign = 1; sign >= -1; sign -= 2) {
                    // A step back is one that leads here from the vertex of the next remainder.
                    const uint64_t to = sign > 0 ? keys[size_t(v)] + step(axis, k)
                                                 : keys[size_t(v)] - step(axis, k == dimension ? 0 : k + 1);
                    const int32_t* here = &coordinates[size_t(v) * width()];
                    const uint64_t hash = mixed(to);
                    Shard& shard = shards[owner(hash)];
                    const int32_t fresh_index = int32_t(shard.numbers.size());
                    const int32_t found = shard.table.insert(to, hash, fresh_index, [&](int32_t other) {
                        const int32_t* there = &coordinates[size_t(shard.numbers[size_t(other)]) * width()];
                        if (!key.exact && !apart(here, there, axis, sign)) collided = true;
                        return true;
                    });
                    if (found != fresh_index) continue;
                    shard.numbers.push_back(int32_t(num_vertices()));
                    int32_t* const fresh = &coordinates[size_t(num_vertices()) * width()];
                    std::copy(here, here + width(), fresh);
                    for (int j = 0; j < dimension; j++) fresh[ahead + j] += sign * ((j == axis ? size : 0) - 1);
                    keys.push_back(to);
                    remainders.push_back(int16_t(sign > 0 ? (k ? k - 1 : dimension) : (k == dimension ? 0 : k + 1)));
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
    if (!points) return true;
    threads = useful_threads(threads, points * size, 1 << 14);
    make_key(halo, threads);
    parts.reserve(size_t(threads));
    for (int i = 0; i < threads; i++) parts.emplace_back(share(points, i, threads), size_t(size));
    each_of(threads, [&](int i) {
        switch (dimension) {
            case 5: return find_cells<5>(parts[size_t(i)]);  // colour images
            case 6: return find_cells<6>(parts[size_t(i)]);  // videos and clouds in colour
            case 7: return find_cells<7>(parts[size_t(i)]);
            default: return find_cells<0>(parts[size_t(i)]);
        }
    });
    for (Part& part : parts) {
        part.first = num_cells;
        num_cells += part.cells;
    }
    ranks.resize(size_t(num_cells * size));
    cell_vertices.resize(size_t(num_cells * size));

    for (log_shards = 0; 2 << log_shards <= threads;) log_shards++;
    shards.reserve(size_t(1) << log_shards);
    for (int i = 0; i < 1 << log_shards; i++) shards.emplace_back(size_t(num_cells >> (log_shards + 1)));
    each_of(1 << log_shards, [&](int i) {
        switch (dimension) {
            case 5: return find_vertices<5>(i);
            case 6: return find_vertices<6>(i);
            case 7: return find_vertices<7>(i);
            default: return find_vertices<0>(i);
        }
    });
    int64_t vertices = 0;
    for (Shard& shard : shards) {
        shard.numbers.resize(shard.keys.size());
        vertices += int64_t(shard.keys.size());
    }
    keys.resize(size_t(vertices));
    remainders.resize(size_t(vertices));
    coordinates.resize(size_t(vertices) * width());
    parallel(threads, [&](Team& team, int thread) { number(team, thread); });
    parts.clear();
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
            const auto target = [&](int64_t v) { return keys[size_t(v)] + (remainders[size_t(v)] ? steps : from_0); };
            constexpr int64_t distance = 16;
            const auto prefetch = [&](int64_t v) __attribute__((always_inline)) {
                const uint64_t hash = mixed(target(v));
                shards[owner(hash)].table.prefetch(hash);
            };
            for (int64_t v = range.begin; v < range.begin + distance && v < range.end; v++) prefetch(v);
            for (int64_t v = range.begin; v < range.end; v++) {
                if (v + distance < range.end) prefetch(v + distance);
                const uint64_t hash = mixed(target(v));
                const Shard& shard = shards[owner(hash)];
                const int32_t found = shard.table.find(target(v), hash, [&](int32_t other) {
                    const int32_t* there = &coordinates[size_t(shard.numbers[size_t(other)]) * width()];
                    return key.exact || apart(&coordinates[size_t(v) * width()], there, axis, 1);
                });
                const int32_t to = found < 0 ? -1 : shard.numbers[size_t(found)];
                link[2 * v + 1] = to;
                if (to >= 0) link[2 * int64_t(to)] = int32_t(v);
            }
        }
    });
}

}  // namespace hdcrf
