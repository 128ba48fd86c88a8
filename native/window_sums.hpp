// Sums over what the taps of a window meet, channel by channel or over channels: the kernels of
// hdcrf/pac/feature_differences.py, and of hdcrf/pac/window_products.py without weights.

#pragma once

#include "window.hpp"

namespace hdcrf {

// What a tap adds to a total, with a factor k, the entry x that it meets, and the entry `own` of the place or pixel that
// is summed for.
struct OfProduct {
    static constexpr bool needs_own = false, weighted = false;
    template <typename V>
    static V add(V total, V k, V x, V) {
        return total + k * x;
    }
};
struct OfWeightedProduct : OfProduct {  // by a weight of its own for each channel and tap
    static constexpr bool weighted = true;
};
struct OfDifference {
    static constexpr bool needs_own = true, weighted = false;
    template <typename V>
    static V add(V total, V k, V x, V own) {
        return total + k * (own - x);
    }
};
struct OfSign {
    static constexpr bool needs_own = true, weighted = false;
    template <typename V>
    static V add(V total, V k, V x, V own) {
        const V zero{};
        return total + (own > x ? k : own < x ? -k : zero);
    }
};

// For places, out(c, j) = Σ_t add(k_t(j), x_c(i(j, t)), own_c(j)); or, `to_grid`, for pixels the sum over what reaches
// them: out(c, i) = Σ_{i(j, t) = i} add(k_t(j), x_c(j), own_c(i)).
//
// Each row of `out` is worked out alone: threads do not change a bit.
template <typename T, bool to_grid, typename Term>
class TapSums {
    static constexpr int L = lanes<T>, vectors = 2;
    static constexpr int64_t run_length = vectors * L, chunk = 4 * run_length;

public:
    const Window& window;
    int64_t batch, channels;
    const T* kernel;  // (batch, taps, places)
    const T* from;    // (batch, channels, …), of the other side
    const T* own;     // (batch, channels, …), as out; if needed
    const T* weight;  // (channels, taps), to multiply k by; if needed

    void run(T* out, int threads) const {
        const int64_t rows = to_grid ? window.grid_rows() : window.place_rows();
        threads = useful_threads(threads, batch * channels * window.taps() * window.places());
        std::vector<Space> space(size_t(threads), Space(window.taps()));
        parallel(threads, [&](Team& team, int thread) {
            const Range range = share(batch * rows, thread, team.threads);
            for (int64_t at = range.begin; at < range.end; at++)
                sum_row(at / rows, at % rows, space[size_t(thread)], out);
        });
    }

private:
    // What some columns of a row meet lies at `offset` + column of each channel.
    struct Entries {
        int64_t offset, tap;
        Range columns;
    };
    struct Space {
        std::vector<Meeting> met;
        std::vector<Entries> some;  // of a chunk
        std::vector<T> factors;     // a chunk of the kernel each
        explicit Space(int64_t taps) : met(size_t(taps)), some(size_t(taps)), factors(size_t(taps * chunk)) {}
    };

    int64_t columns() const { return to_grid ? window.grid_columns() : window.place_columns(); }
    int64_t plane() const { return to_grid ? window.pixels() : window.places(); }
    int64_t columns_from() const { return to_grid ? window.place_columns() : window.grid_columns(); }
    int64_t plane_from() const { return to_grid ? window.places() : window.pixels(); }

    void sum_row(int64_t item, int64_t row, Space& space, T* out) const {
        const int64_t all = to_grid ? window.of_grid(row, space.met.data()) : window.of_places(row, space.met.data());
        const Span<T> every{kernel, batch * window.taps() * window.places()};
        for (int64_t n = 0; n < columns(); n += chunk) {
            // The kernel's entries side by side: where they lie, a cache holds few of them at a time if a plane of them
            // has a power of two of bytes.
            int64_t number = 0;
            for (int64_t i = 0; i < all; i++) {
                const Meeting& met = space.met[size_t(i)];
                const Range inside = met.within(n, chunk);
                if (inside.begin >= inside.end) continue;
                const int64_t at = to_grid ? met.row * window.place_columns() + met.shift : row * columns();
                every.template copy<4 * vectors>((item * window.taps() + met.tap) * window.places() + at + n, inside, 0,
                                                 1, space.factors.data() + number * chunk);
                space.some[size_t(number++)] = {met.row * columns_from() + met.shift, met.tap, met.columns};
            }
            for (int64_t channel = 0; channel < channels;) {
                const int64_t some = std::min<int64_t>(channels - channel, 4);
                with_constant<4>(some, [&](auto constant) {
                    for (int64_t run = 0; run < chunk && n + run < columns(); run += run_length)
                        sum_run<constant()>(space, number, run, item * channels + channel, row, n + run, out);
                });
                channel += some;
            }
        }
    }

    // A run of columns of a row, in some channels from `first` on, which is counted through the batch.
    template <int some>
    void sum_run(
        const Space& space, int64_t number, int64_t run, int64_t first, int64_t row, int64_t n, T* out
    ) const {
        const int64_t count = std::min(columns() - n, run_length), here = first * plane() + row * columns() + n;
        const int64_t step = plane_from();
        const Span<T> all_from{from, batch * channels * step};
        T partly[some * run_length];  // of each channel, where they are not met as a whole
        Vector<T> total[some][vectors] = {}, mine[some][vectors] = {};
        if constexpr (Term::needs_own) {
            const Span<T> all_own{own, batch * channels * plane()};
            all_own.template copy<vectors>(here, {0, count}, plane(), some, partly);
            for (int c = 0; c < some; c++)
                for (int v = 0; v < vectors; v++) mine[c][v] = load(partly + c * run_length + v * L);
        }
        const T* const weights = Term::weighted ? weight + first % channels * window.taps() : nullptr;
        const auto add = [&](const T* k, int64_t tap, const T* x, int64_t next) __attribute__((always_inline)) {
            for (int v = 0; v < vectors; v++) {
                const Vector<T> shared = load(k + v * L);
                for (int c = 0; c < some; c++) {
                    Vector<T> factor = shared;
                    if constexpr (Term::weighted) factor *= broadcast(weights[c * window.taps() + tap]);
                    total[c][v] = Term::add(total[c][v], factor, load(x + c * next + v * L), mine[c][v]);
                }
            }
        };
        // First what is met as a whole: totals stay in registers where nothing is called.
        const int64_t at = first * step + n;
        const Entries *const begin = space.some.data(), *const end = begin + number;
        const T* k = space.factors.data() + run;
        bool as_a_whole = true;
        for (const Entries* met = begin; met < end; met++, k += chunk) {
            const bool whole = n >= met->columns.begin && n + run_length <= met->columns.end;
            if (whole) add(k, met->tap, from + at + met->offset, step);
            as_a_whole &= whole;
        }
        k = space.factors.data() + run;
        for (const Entries* met = begin; met < end && !as_a_whole; met++, k += chunk) {
            const Range inside{std::max(met->columns.begin - n, int64_t(0)), std::min(met->columns.end - n, run_length)};
            if (inside.begin >= inside.end || inside.end - inside.begin == run_length) continue;
            all_from.template copy<vectors>(at + met->offset, inside, step, some, partly);
            add(k, met->tap, partly, run_length);
        }
        T* const to = count < run_length ? partly : out + here;
        const int64_t next = count < run_length ? run_length : plane();
        for (int c = 0; c < some; c++)
            for (int v = 0; v < vectors; v++) store(to + c * next + v * L, total[c][v]);
        if (count < run_length)
            for (int c = 0; c < some; c++) std::copy_n(partly + c * run_length, count, out + here + c * plane());
    }
};

// What a channel adds to a total, with the entry x that a tap meets and the entry c of the place.
struct OfBoth {
    static constexpr bool weighted = false;
    template <typename V>
    static V add(V total, V x, V c) {
        return total + x * c;
    }
};
struct OfWeightedBoth : OfBoth {  // by a weight of its own for each channel and tap
    static constexpr bool weighted = true;
};
struct OfSquare {
    static constexpr bool weighted = false;
    template <typename V>
    static V add(V total, V x, V c) {
        return total + (x - c) * (x - c);
    }
};
struct OfMagnitude {
    static constexpr bool weighted = false;
    template <typename V>
    static V add(V total, V x, V c) {
        const V difference = x - c;
        return total + (difference < 0 ? -difference : difference);
    }
};

// out(t, j) = Σ_c add(x_c(i(j, t)), own_c(j)), or e^(scale · that) if there is a scale; and 0 where a tap meets nothing.
//
// Each row of places is worked out alone: threads do not change a bit.
template <typename T, typename Term>
class ChannelSums {
    static constexpr int L = lanes<T>, vectors = 2, most_taps = 5;
    static constexpr int64_t run_length = vectors * L, chunk = 4 * run_length, most_channels = 8;

public:
    const Window& window;
    int64_t batch, channels;
    const T* grid;    // (batch, channels, pixels)
    const T* places;  // (batch, channels, places)
    const T* weight;  // (channels, taps), to multiply the places' entries by; if needed
    T scale = 0;

    void run(T* out, int threads) const {
        const int64_t rows = window.place_rows();
        threads = useful_threads(threads, batch * channels * window.taps() * window.places());
        std::vector<Space> space(size_t(threads), Space(window.taps()));
        parallel(threads, [&](Team& team, int thread) {
            const Range range = share(batch * rows, thread, team.threads);
            for (int64_t at = range.begin; at < range.end; at++)
                sum_row(at / rows, at % rows, space[size_t(thread)], out);
        });
    }

private:
    struct Space {
        std::vector<Meeting> met;
        std::vector<T> totals;  // a chunk for each tap
        explicit Space(int64_t taps) : met(size_t(taps)), totals(size_t(taps * chunk)) {}
    };

    // Some channels at a time, of which what the taps meet stays in the nearest cache.
    void sum_row(int64_t item, int64_t row, Space& space, T* out) const {
        const int64_t number = window.of_places(row, space.met.data());
        const bool sure = readable(item, space.met.data(), space.met.data() + number, row, 0, {0, channels}, columns());
        T* const to = out + item * window.taps() * window.places() + row * window.place_columns();
        for (int64_t n = 0; n < window.place_columns(); n += chunk) {
            const int64_t count = std::min(window.place_columns() - n, chunk);
            std::fill_n(space.totals.data(), number * chunk, T(0));
            for (int64_t channel = 0; channel < channels; channel += most_channels) {
                const Range some{channel, std::min(channel + most_channels, channels)};
                for (int64_t i = 0; i < number; i += most_taps)
                    with_constant<most_taps>(number - i, [&](auto constant) {
                        for (int64_t run = 0; run < count; run += run_length)
                            sum_run<constant()>(
                                space.met.data() + i, item, row, n + run, some, sure,
                                space.totals.data() + i * chunk + run
                            );
                    });
            }
            if (scale != 0) exponentials(space.totals.data(), number * chunk);
            write(space, number, n, count, to + n);
        }
    }

    // totals = e^(scale · totals), zero rather than subnormal.
    void exponentials(T* totals, int64_t count) const {
        const Vector<T> factor = broadcast(scale), lowest = broadcast(T(lanes<T> == 8 ? -87 : -708)), zero{};
        for (int64_t i = 0; i < count; i += L) {
            const Vector<T> x = load(totals + i) * factor;
            store(totals + i, x > lowest ? exponential(x) : x <= lowest ? zero : x);  // NaN stays
        }
    }

    T weight_of(int64_t channel, const Meeting& met) const {
        return Term::weighted ? weight[channel * window.taps() + met.tap] : T(1);
    }

    // Columns of a row of places, up to a whole run.
    int64_t columns() const { return (window.place_columns() + run_length - 1) / run_length * run_length; }

    // Whether `count` columns from `n` on can be read, in some channels, of what some taps meet and of the places: they
    // may go beyond a row, but not beyond the arrays.
    bool readable(
        int64_t item, const Meeting* met, const Meeting* end, int64_t row, int64_t n, Range of, int64_t count
    ) const {
        const Span<T> all_grid{grid, batch * channels * window.pixels()};
        const Span<T> all_places{places, batch * channels * window.places()};
        const int64_t first = item * channels + of.begin, more = of.end - of.begin - 1;
        bool result = all_places.holds(
            first * window.places() + row * window.place_columns() + n, more * window.places() + count
        );
        for (; met < end; met++)
            result &= all_grid.holds(
                first * window.pixels() + met->row * window.grid_columns() + met->shift + n,
                more * window.pixels() + count
            );
        return result;
    }

    // Add what some channels contribute to a run of places, for some taps; `sure` is known to be readable.
    template <int some>
    void sum_run(const Meeting* met, int64_t item, int64_t row, int64_t n, Range of, bool sure, T* totals) const {
        const int64_t step = window.places(), grid_step = window.pixels();
        const int64_t here = (item * channels + of.begin) * step + row * window.place_columns() + n;
        int64_t there[some];
        for (int t = 0; t < some; t++)
            there[t] = (item * channels + of.begin) * grid_step + met[t].row * window.grid_columns() + met[t].shift + n;
        if (!sure && !readable(item, met, met + some, row, n, of, run_length)) {
            for (int t = 0; t < some; t++) {
                const Range inside = met[t].within(n, std::min(window.place_columns() - n, run_length));
                for (int64_t c = 0; c < of.end - of.begin; c++)
                    for (int64_t i = inside.begin; i < inside.end; i++) {
                        T& total = totals[t * chunk + i];
                        const T mine = places[here + c * step + i] * weight_of(of.begin + c, met[t]);
                        total = Term::add(total, grid[there[t] + c * grid_step + i], mine);
                    }
            }
            return;
        }
        Vector<T> total[some][vectors];
        const T* own = places + here;
        const T* x[some];
        for (int t = 0; t < some; t++) {
            x[t] = grid + there[t];
            for (int v = 0; v < vectors; v++) total[t][v] = load(totals + t * chunk + v * L);
        }
        for (int64_t c = of.begin; c < of.end; c++, own += step) {
            Vector<T> mine[vectors];
            for (int v = 0; v < vectors; v++) mine[v] = load(own + v * L);
            for (int t = 0; t < some; t++) {
                const Vector<T> factor = broadcast(weight_of(c, met[t]));
                for (int v = 0; v < vectors; v++)
                    total[t][v] =
                        Term::add(total[t][v], load(x[t] + v * L), Term::weighted ? mine[v] * factor : mine[v]);
                x[t] += grid_step;
            }
        }
        for (int t = 0; t < some; t++)
            for (int v = 0; v < vectors; v++) store(totals + t * chunk + v * L, total[t][v]);
    }

    // Write what was met, and zeros.
    void write(const Space& space, int64_t number, int64_t n, int64_t count, T* to) const {
        const Meeting* met = space.met.data();
        const T* totals = space.totals.data();
        for (int64_t tap = 0; tap < window.taps(); tap++, to += window.places()) {
            Range inside{0, 0};
            if (met < space.met.data() + number && met->tap == tap) {
                inside = met++->within(n, count);
                if (inside.begin < inside.end)
                    std::copy(totals + inside.begin, totals + inside.end, to + inside.begin);
                else
                    inside = {0, 0};
                totals += chunk;
            }
            std::fill(to, to + inside.begin, T(0));
            std::fill(to + inside.end, to + count, T(0));
        }
    }
};

}  // namespace hdcrf
