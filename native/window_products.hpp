// Pixel-adaptive convolution with weights, and its derivatives: the kernels of hdcrf/pac/window_products.py.
//
// All three are products of matrices of which one is made, a block that stays in the nearest caches at a time, from what
// the taps meet. A tile of the result, some rows of 3 vectors, stays in registers.

#pragma once

#include "window.hpp"

namespace hdcrf {

template <typename T>
class WindowProducts {
    static constexpr int L = lanes<T>;
    static constexpr int block = 4;                // channels, or rows, of a tile
    static constexpr int64_t panel = 3 * L;        // columns of a tile
    static constexpr int64_t most_rows = 192;      // of panels of K x, which then take half of the nearest cache
    static constexpr int64_t long_panel = 12 * L;  // columns of K x that a gradient of weights is summed over at once

public:
    const Window& window;
    int64_t batch, channels, out_channels, groups;
    const T* values;   // (batch, channels, pixels)
    const T* kernel;   // (batch, taps, places)
    const T* weight;   // (out_channels, channels / groups, taps)
    const T* outputs;  // (batch, out_channels, places)

    // Whether each channel is convolved by itself: then W_t are numbers, and sums in window_sums.hpp serve better.
    bool by_channels() const { return of_group() == 1 && of_group_out() == 1; }

    // out = Σ_t K_t W_t x: (W_1 W_2 …) times the rows K_t x_c, by panels of places.
    //
    // Each panel is worked out alone: threads do not change a bit.
    void convolve(T* out, int threads) const {
        const int64_t panels = (window.place_columns() + panel - 1) / panel, rows = batch * window.place_rows();
        const int64_t taps = window.taps(), blocks = blocks_of(of_group_out());
        threads = useful_threads(threads, operations());
        Buffer<T> packed(size_t(groups * blocks * taps * of_group() * block));
        std::vector<ConvolutionSpace> space(static_cast<size_t>(threads));
        for (auto& own : space) own = ConvolutionSpace(taps, blocks);
        parallel(threads, [&](Team& team, int thread) {
            ConvolutionSpace& own = space[size_t(thread)];
            const Range part = share(groups * blocks, thread, team.threads);
            for (int64_t i = part.begin; i < part.end; i++)
                pack_outputs(i / blocks, i % blocks, packed.data() + i * taps * of_group() * block);
            team.wait();
            const Range range = share(rows * panels, thread, team.threads);
            int64_t before = -1, number = 0;
            for (int64_t at = range.begin; at < range.end; at++) {
                const int64_t row = at / panels, first = at % panels * panel;
                if (row != before) number = window.of_places(row % window.place_rows(), own.met.data());
                before = row;
                const int64_t count = std::min(window.place_columns() - first, panel);
                with_constant<3>((count + L - 1) / L, [&](auto vectors) {
                    convolve_panel<vectors()>(packed.data(), row, first, count, number, own, out);
                });
            }
        });
    }

    // Of u = W_tᵀ g, a tile at a time: of_kernel = Σ_c x u, and of_values, where taps spread K u; either may be null.
    //
    // A thread has rows of the grid for its own, and all that places spread there: no other writes where it does.
    void spread(T* of_values, T* of_kernel, int threads) const {
        const int64_t taps = window.taps(), blocks = blocks_of(of_group()), rows = batch * window.grid_rows();
        threads = useful_threads(threads, operations());
        Buffer<T> packed(size_t(groups * taps * blocks * of_group_out() * block));
        std::vector<SpreadSpace> space(static_cast<size_t>(threads));
        for (auto& own : space) own = SpreadSpace(taps, out_channels);
        parallel(threads, [&](Team& team, int thread) {
            SpreadSpace& own = space[size_t(thread)];
            const Range part = share(groups * taps, thread, team.threads);
            for (int64_t i = part.begin; i < part.end; i++)
                pack_values(i / taps, i % taps, packed.data() + i * blocks * of_group_out() * block);
            if (of_kernel) {
                const Range some = share(batch * taps * window.places(), thread, team.threads);
                std::fill(of_kernel + some.begin, of_kernel + some.end, T(0));
            }
            team.wait();
            const Range range = share(rows, thread, team.threads);
            for (int64_t item = 0; item < batch; item++) {
                const Range mine{
                    std::max<int64_t>(range.begin - item * window.grid_rows(), 0),
                    std::min(range.end - item * window.grid_rows(), window.grid_rows())
                };
                if (mine.begin < mine.end) spread_to(packed.data(), item, mine, own, of_values, of_kernel);
            }
        });
    }

    // of_weight_t = Σ_j K_t g_j x_{i(j, t)}ᵀ: a row of it for each tap and channel.
    //
    // A thread has some of these rows for its own, and goes through all places: threads do not change a bit.
    void weight_gradient(T* of_weight, int threads) const {
        const int64_t taps = window.taps(), width = width_of_sums();
        threads = useful_threads(threads, operations());
        Buffer<T> sums(size_t(channels * taps * width));
        std::vector<WeightSpace> space(static_cast<size_t>(threads));
        for (auto& own : space) own = WeightSpace(taps, width);
        parallel(threads, [&](Team& team, int thread) {
            // Rows are numbered by group, tap and channel.
            const Range range = share(channels * taps, thread, team.threads);
            std::fill(sums.data() + range.begin * width, sums.data() + range.end * width, T(0));
            for (int64_t group = 0; group < groups; group++) {
                const int64_t rows = taps * of_group();
                const Range mine{
                    std::max<int64_t>(range.begin - group * rows, 0), std::min(range.end - group * rows, rows)
                };
                if (mine.begin < mine.end)
                    sum_weights(group, mine, space[size_t(thread)], sums.data() + group * rows * width);
            }
            for (int64_t row = range.begin; row < range.end; row++) {
                const int64_t group = row / (taps * of_group()), tap = row / of_group() % taps, c = row % of_group();
                for (int64_t o = 0; o < of_group_out(); o++)
                    of_weight[((group * of_group_out() + o) * of_group() + c) * taps + tap] =
                        sums[size_t(row * width + o)];
            }
        });
    }

private:
    int64_t of_group() const { return channels / groups; }
    int64_t of_group_out() const { return out_channels / groups; }
    int64_t operations() const { return batch * out_channels * of_group() * window.taps() * window.places(); }
    static int64_t blocks_of(int64_t channels) { return (channels + block - 1) / block; }
    int64_t width_of_sums() const { return (of_group_out() + L - 1) / L * L; }

    template <int rows, int vectors>
    using Tile = Vector<T>[rows][vectors];

    // tile += Wᵀ Z: of `count` rows, `rows` entries each of W, and so many vectors each of Z.
    template <int rows, int vectors>
    static void multiply(const T* w, const T* z, int64_t count, Tile<rows, vectors>& tile) {
        for (int64_t i = 0; i < count; i++, w += rows, z += vectors * L) {
            Vector<T> right[vectors];
            for (int v = 0; v < vectors; v++) right[v] = load(z + v * L);
            for (int r = 0; r < rows; r++) {
                const Vector<T> left = broadcast(w[r]);
                for (int v = 0; v < vectors; v++) tile[r][v] += left * right[v];
            }
        }
    }

    // ---- convolve

    // Rows of K x that follow one another in the weights too.
    struct Segment {
        int64_t first, count;
    };
    struct ConvolutionSpace {
        std::vector<Meeting> met;
        std::vector<Segment> segments;
        Buffer<T> adapted, sums;  // (rows, panel) of K x; (channels, panel)

        ConvolutionSpace() = default;
        ConvolutionSpace(int64_t taps, int64_t blocks)
            : met(size_t(taps)), adapted(size_t(most_rows * panel)), sums(size_t(blocks * block * panel)) {
            segments.reserve(size_t(most_rows));
        }
    };

    // For a block of outputs, its weights by tap and channel: (taps, channels of a group, block).
    void pack_outputs(int64_t group, int64_t number, T* to) const {
        const int64_t taps = window.taps();
        for (int64_t r = 0; r < block; r++) {
            const int64_t o = number * block + r;
            for (int64_t tap = 0; tap < taps; tap++)
                for (int64_t c = 0; c < of_group(); c++)
                    to[(tap * of_group() + c) * block + r] =
                        o < of_group_out() ? weight[((group * of_group_out() + o) * of_group() + c) * taps + tap] : T(0);
        }
    }

    template <int vectors>
    void convolve_panel(
        const T* packed, int64_t row, int64_t first, int64_t count, int64_t number, ConvolutionSpace& space, T* out
    ) const {
        constexpr int64_t length = vectors * L;
        const int64_t item = row / window.place_rows(), here = row % window.place_rows() * window.place_columns() + first;
        const int64_t blocks = blocks_of(of_group_out()), of_block = window.taps() * of_group() * block;
        for (int64_t group = 0; group < groups; group++) {
            const T* const weights = packed + group * blocks * of_block;
            T* const sums = space.sums.data();
            std::fill_n(sums, blocks * block * length, T(0));
            int64_t filled = 0;
            space.segments.clear();
            const auto flush = [&] {
                for (int64_t b = 0; b < blocks; b++)
                    multiply_segments<vectors>(weights + b * of_block, space, sums + b * block * length);
                filled = 0;
                space.segments.clear();
            };
            for (int64_t i = 0; i < number; i++) {
                const Meeting& met = space.met[size_t(i)];
                const Range inside = met.within(first, count);
                if (inside.begin >= inside.end) continue;
                for (int64_t c = 0; c < of_group();) {
                    const int64_t some = std::min(of_group() - c, most_rows - filled), at = met.tap * of_group() + c;
                    adapt<vectors>(met, item, group * of_group() + c, some, here, first, inside,
                                   space.adapted.data() + filled * length);
                    if (!space.segments.empty() && space.segments.back().first + space.segments.back().count == at)
                        space.segments.back().count += some;
                    else
                        space.segments.push_back({at, some});
                    c += some;
                    filled += some;
                    if (filled == most_rows) flush();
                }
            }
            if (filled) flush();
            T* const to = out + (item * out_channels + group * of_group_out()) * window.places() + here;
            for (int64_t o = 0; o < of_group_out(); o++) {
                if (count == length)
                    for (int v = 0; v < vectors; v++)
                        store(to + o * window.places() + v * L, load(sums + o * length + v * L));
                else
                    std::copy_n(sums + o * length, count, to + o * window.places());
            }
        }
    }

    template <int vectors>
    static void multiply_segments(const T* weights, const ConvolutionSpace& space, T* sums) {
        Vector<T> tile[block][vectors];
        for (int r = 0; r < block; r++)
            for (int v = 0; v < vectors; v++) tile[r][v] = load(sums + (r * vectors + v) * L);
        const T* z = space.adapted.data();
        for (const Segment& segment : space.segments) {
            multiply<block, vectors>(weights + segment.first * block, z, segment.count, tile);
            z += segment.count * vectors * L;
        }
        for (int r = 0; r < block; r++)
            for (int v = 0; v < vectors; v++) store(sums + (r * vectors + v) * L, tile[r][v]);
    }

    // Rows K x of a run of places, which starts at `here` among them and at column `first`, for a tap and some channels.
    template <int vectors>
    void adapt(
        const Meeting& met, int64_t item, int64_t channel, int64_t some, int64_t here, int64_t first, Range inside,
        T* to
    ) const {
        const int64_t plane = window.pixels();
        const T* k = kernel + (item * window.taps() + met.tap) * window.places() + here;
        const T* x = values + (item * channels + channel) * plane + met.row * window.grid_columns() + met.shift + first;
        if (inside.end - inside.begin == vectors * L) {
            Vector<T> factor[vectors];
            for (int v = 0; v < vectors; v++) factor[v] = load(k + v * L);
            for (int64_t c = 0; c < some; c++, x += plane, to += vectors * L)
                for (int v = 0; v < vectors; v++) store(to + v * L, factor[v] * load(x + v * L));
        } else {
            for (int64_t c = 0; c < some; c++, x += plane, to += vectors * L) {
                std::fill_n(to, vectors * L, T(0));
                for (int64_t i = inside.begin; i < inside.end; i++) to[i] = k[i] * x[i];
            }
        }
    }

    // ---- spread

    struct SpreadSpace {
        std::vector<Meeting> met;
        Buffer<T> outputs;  // (channels, panel) of g

        SpreadSpace() = default;
        SpreadSpace(int64_t taps, int64_t out_channels) : met(size_t(taps)), outputs(size_t(out_channels * panel)) {}
    };

    // For a tap, blocks of channels: (blocks, outputs of a group, block).
    void pack_values(int64_t group, int64_t tap, T* to) const {
        for (int64_t c = 0; c < blocks_of(of_group()) * block; c++)
            for (int64_t o = 0; o < of_group_out(); o++)
                to[(c / block * of_group_out() + o) * block + c % block] =
                    c < of_group() ? weight[((group * of_group_out() + o) * of_group() + c) * window.taps() + tap] : T(0);
    }

    // To the rows `mine` of an item's grid.
    void spread_to(
        const T* packed, int64_t item, Range mine, SpreadSpace& space, T* of_values, T* of_kernel
    ) const {
        const int64_t width = window.grid_columns();
        if (of_values)
            for (int64_t c = 0; c < channels; c++) {
                T* const to = of_values + (item * channels + c) * window.pixels();
                std::fill(to + mine.begin * width, to + mine.end * width, T(0));
            }
        for (int64_t row = 0; row < window.place_rows(); row++) {
            Meeting* const met = space.met.data();
            Meeting* const end = std::remove_if(met, met + window.of_places(row, met), [&](const Meeting& one) {
                return one.row < mine.begin || one.row >= mine.end;
            });
            if (end == met) continue;
            for (int64_t first = 0; first < window.place_columns(); first += panel) {
                const int64_t count = std::min(window.place_columns() - first, panel);
                with_constant<3>((count + L - 1) / L, [&](auto vectors) {
                    constexpr int64_t length = vectors() * L;
                    const int64_t here = row * window.place_columns() + first;
                    const Span<T> all{outputs, batch * out_channels * window.places()};
                    all.template copy<vectors()>(item * out_channels * window.places() + here, {0, count},
                                                 window.places(), int(out_channels), space.outputs.data());
                    for (const Meeting* one = met; one < end; one++) {
                        const Range inside = one->within(first, count);
                        if (inside.begin < inside.end)
                            spread_panel<vectors()>(
                                packed, *one, item, here, first, inside, inside.end - inside.begin == length,
                                space.outputs.data(), of_values, of_kernel
                            );
                    }
                });
            }
        }
    }

    // A panel of places through one tap.
    template <int vectors>
    void spread_panel(
        const T* packed, const Meeting& met, int64_t item, int64_t here, int64_t first, Range inside, bool whole,
        const T* g, T* of_values, T* of_kernel
    ) const {
        constexpr int64_t length = vectors * L;
        const int64_t plane = window.pixels(), blocks = blocks_of(of_group());
        const int64_t at_kernel = (item * window.taps() + met.tap) * window.places() + here;
        const int64_t at_values = item * channels * plane + met.row * window.grid_columns() + met.shift + first;
        Vector<T> adapting[vectors] = {}, total[vectors] = {};
        if (of_values && whole)
            for (int v = 0; v < vectors; v++) adapting[v] = load(kernel + at_kernel + v * L);
        T part[length] = {};  // of the kernel's gradient, where not all is met
        for (int64_t group = 0; group < groups; group++) {
            const T* w = packed + (group * window.taps() + met.tap) * blocks * of_group_out() * block;
            for (int64_t b = 0; b < blocks; b++, w += of_group_out() * block) {
                const int64_t at = at_values + (group * of_group() + b * block) * plane;
                const int64_t some = std::min<int64_t>(of_group() - b * block, block);
                if (whole) {
                    // Planes of a power of two of bytes share few places of a cache; while the tile is computed, what it
                    // is used for comes.
                    for (int64_t r = 0; r < some; r++)
                        for (int64_t i = 0; i < length + 64 / int64_t(sizeof(T)); i += 64 / int64_t(sizeof(T))) {
                            const int64_t one = at + r * plane + std::min(i, length - 1);
                            if (of_kernel) __builtin_prefetch(values + one);
                            if (of_values) __builtin_prefetch(of_values + one, 1);
                        }
                }
                Vector<T> tile[block][vectors] = {};
                multiply<block, vectors>(w, g + group * of_group_out() * length, of_group_out(), tile);
                if (whole && some == block) {
                    if (of_kernel)
                        for (int r = 0; r < block; r++)
                            for (int v = 0; v < vectors; v++)
                                total[v] += tile[r][v] * load(values + at + r * plane + v * L);
                    if (of_values)
                        for (int r = 0; r < block; r++)
                            for (int v = 0; v < vectors; v++) {
                                T* const to = of_values + at + r * plane + v * L;
                                store(to, load(to) + tile[r][v] * adapting[v]);
                            }
                } else {
                    T u[block * length];
                    for (int r = 0; r < block; r++)
                        for (int v = 0; v < vectors; v++) store(u + r * length + v * L, tile[r][v]);
                    for (int64_t r = 0; r < some; r++)
                        spread_run(
                            u + r * length, at + r * plane, at_kernel, inside, of_values, of_kernel ? part : nullptr
                        );
                }
            }
        }
        if (!of_kernel) return;
        for (int v = 0; v < vectors; v++) store(part + v * L, load(part + v * L) + total[v]);
        std::copy(part + inside.begin, part + inside.end, of_kernel + at_kernel + inside.begin);
    }

    // A run of places in one channel.
    void spread_run(const T* u, int64_t at, int64_t at_kernel, Range inside, T* of_values, T* part) const {
        if (of_values)
            for (int64_t i = inside.begin; i < inside.end; i++) of_values[at + i] += kernel[at_kernel + i] * u[i];
        if (part)
            for (int64_t i = inside.begin; i < inside.end; i++) part[i] += values[at + i] * u[i];
    }

    // ---- weight_gradient

    static constexpr int64_t some_rows = 64;  // of long panels
    struct WeightSpace {
        std::vector<Meeting> met;
        Buffer<T> adapted, outputs;  // (rows, long panel) of K x; (long panel, channels) of g
        int64_t rows[some_rows];

        WeightSpace() = default;
        WeightSpace(int64_t taps, int64_t width)
            : met(size_t(taps)), adapted(size_t(some_rows * long_panel)), outputs(size_t(width * long_panel)) {}
    };

    // Add to the rows `mine` of the sums of a group.
    void sum_weights(int64_t group, Range mine, WeightSpace& space, T* sums) const {
        for (int64_t row = 0; row < batch * window.place_rows(); row++) {
            const int64_t item = row / window.place_rows(), start = row % window.place_rows() * window.place_columns();
            const int64_t number = window.of_places(row % window.place_rows(), space.met.data());
            for (int64_t first = 0; first < window.place_columns(); first += long_panel) {
                const int64_t count = std::min(window.place_columns() - first, long_panel);
                bool turned = false;
                int64_t filled = 0;
                const auto flush = [&] {
                    if (!turned) turn_outputs(item, group, start + first, count, space.outputs.data());
                    turned = true;
                    for (int64_t i = 0; i < filled; i += block)
                        with_constant<block>(filled - i, [&](auto some) {
                            add_rows<some()>(space, i, count, sums);
                        });
                    filled = 0;
                };
                for (int64_t i = 0; i < number; i++) {
                    const Meeting& met = space.met[size_t(i)];
                    const Range inside = met.within(first, count);
                    if (inside.begin >= inside.end) continue;
                    const int64_t begin = std::max(mine.begin - met.tap * of_group(), int64_t(0));
                    const int64_t end = std::min(mine.end - met.tap * of_group(), of_group());
                    for (int64_t c = begin; c < end; c++) {
                        T* const to = space.adapted.data() + filled * long_panel;
                        adapt_row(met, item, group * of_group() + c, start + first, first, inside, count, to);
                        space.rows[filled++] = met.tap * of_group() + c;
                        if (filled == some_rows) flush();
                    }
                }
                if (filled) flush();
            }
        }
    }

    // K x of a long run of places.
    void adapt_row(
        const Meeting& met, int64_t item, int64_t channel, int64_t here, int64_t first, Range inside, int64_t count,
        T* to
    ) const {
        const T* k = kernel + (item * window.taps() + met.tap) * window.places() + here;
        const T* x = values + (item * channels + channel) * window.pixels() + met.row * window.grid_columns() +
                     met.shift + first;
        std::fill(to, to + inside.begin, T(0));
        for (int64_t i = inside.begin; i < inside.end; i++) to[i] = k[i] * x[i];
        std::fill(to + inside.end, to + count, T(0));
    }

    // g of a run of places, the other way round: (places, channels), with zeros up to whole vectors.
    void turn_outputs(int64_t item, int64_t group, int64_t here, int64_t count, T* to) const {
        const int64_t width = width_of_sums(), plane = window.places();
        const Span<T> all{outputs, batch * out_channels * plane};
        const int64_t from = (item * out_channels + group * of_group_out()) * plane + here;
        for (int64_t o = 0; o < width; o += L)
            for (int64_t j = 0; j < count; j += L) {
                T square[L * L] = {};
                all.template copy<1>(from + o * plane + j, {0, std::min<int64_t>(count - j, L)}, plane,
                                     int(std::min<int64_t>(of_group_out() - o, L)), square);
                Vector<T> v[L];
                for (int i = 0; i < L; i++) v[i] = load(square + i * L);
                transpose<T>(v);
                for (int64_t i = 0; i < std::min<int64_t>(count - j, L); i++) store(to + (j + i) * width + o, v[i]);
            }
    }

    template <int some>
    void add_rows(const WeightSpace& space, int64_t row, int64_t count, T* sums) const {
        const int64_t width = width_of_sums();
        // As even as can be: a tile of one vector keeps its units waiting.
        const int64_t vectors = width / L, parts = (vectors + 2) / 3;
        for (int64_t part = 0; part < parts; part++) {
            const Range mine = share(vectors, int(part), int(parts));
            with_constant<3>(mine.end - mine.begin, [&](auto number) {
                Vector<T> tile[some][number()] = {};
                const T* z = space.adapted.data() + row * long_panel;
                const T* g = space.outputs.data() + mine.begin * L;
                for (int64_t j = 0; j < count; j++, g += width) {
                    Vector<T> right[number()];
                    for (int v = 0; v < number(); v++) right[v] = load(g + v * L);
                    for (int r = 0; r < some; r++) {
                        const Vector<T> left = broadcast(z[r * long_panel + j]);
                        for (int v = 0; v < number(); v++) tile[r][v] += left * right[v];
                    }
                }
                for (int r = 0; r < some; r++) {
                    T* const to = sums + space.rows[row + r] * width + mine.begin * L;
                    for (int v = 0; v < number(); v++) store(to + v * L, load(to + v * L) + tile[r][v]);
                }
            });
        }
    }
};

}  // namespace hdcrf
