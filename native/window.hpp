// A window that moves over a grid, as hdcrf/pac/window.py explains it: which pixels its taps meet, by rows.
//
// The last axis has no stride here: Python cuts each row of the grid into as many rows as the stride, of the pixels with
// the same remainder. So what a row of places meets through a tap is a run of one row of the grid, and the other way
// round.

#pragma once

#include <algorithm>
#include <vector>

#include "threads.hpp"
#include "vectors.hpp"

namespace hdcrf {

// Through a tap, column n of a row meets column n + shift of a row of the other side, for n in `columns`.
struct Meeting {
    int64_t tap, row, shift;
    Range columns;

    // Of the run of `count` columns from `first` on, those that meet something, counted from `first`.
    Range within(int64_t first, int64_t count) const {
        return {std::max<int64_t>(columns.begin - first, 0), std::min(columns.end - first, count)};
    }
};

class Window {
    struct Axis {
        int64_t size, taps, stride, padding, dilation, places;

        // Place j meets, through a tap, pixel stride · j + offset.
        int64_t offset(int64_t tap) const { return dilation * tap - padding; }
        // The pixel that a place meets, and the place that meets a pixel; -1 for none.
        int64_t pixel(int64_t place, int64_t tap) const {
            const int64_t at = stride * place + offset(tap);
            return at >= 0 && at < size ? at : -1;
        }
        int64_t place(int64_t pixel, int64_t tap) const {
            const int64_t at = pixel - offset(tap);
            return at >= 0 && at % stride == 0 && at / stride < places ? at / stride : -1;
        }
    };
    struct Shift {
        int64_t remainder, columns;
    };

public:
    // The numbers of `Window.numbers` for three axes.
    explicit Window(const int64_t* numbers) {
        for (int i = 0; i < 3; i++)
            axes_[i] = {numbers[i],     numbers[3 + i],  numbers[6 + i],
                        numbers[9 + i], numbers[12 + i], numbers[15 + i]};
        const Axis& last = axes_[2];
        for (int64_t tap = 0; tap < last.taps; tap++) {
            const int64_t remainder = (last.offset(tap) % last.stride + last.stride) % last.stride;
            shifts_.push_back({remainder, (last.offset(tap) - remainder) / last.stride});
        }
    }

    int64_t taps() const { return axes_[0].taps * axes_[1].taps * axes_[2].taps; }
    // Rows and columns of places, and of the grid.
    int64_t place_rows() const { return axes_[0].places * axes_[1].places; }
    int64_t place_columns() const { return axes_[2].places; }
    int64_t grid_rows() const { return axes_[0].size * axes_[1].size * axes_[2].stride; }
    int64_t grid_columns() const { return (axes_[2].size + axes_[2].stride - 1) / axes_[2].stride; }
    int64_t places() const { return place_rows() * place_columns(); }
    int64_t pixels() const { return grid_rows() * grid_columns(); }

    // What a row of places meets of the grid, by taps; room for `taps` is needed. Returns how many.
    int64_t of_places(int64_t row, Meeting* to) const {
        const int64_t first = row / axes_[1].places, second = row % axes_[1].places;
        const Meeting* const start = to;
        for (int64_t tap = 0; tap < axes_[0].taps; tap++)
            for (int64_t next = 0; next < axes_[1].taps; next++) {
                const int64_t i = axes_[0].pixel(first, tap), j = axes_[1].pixel(second, next);
                if (i < 0 || j < 0) continue;
                for (int64_t last = 0; last < axes_[2].taps; last++) {
                    const auto [remainder, shift] = shifts_[size_t(last)];
                    const Range columns{
                        std::max<int64_t>(0, -shift), std::min(place_columns(), columns_of(remainder) - shift)
                    };
                    const int64_t other = (i * axes_[1].size + j) * axes_[2].stride + remainder;
                    if (columns.begin < columns.end) *to++ = {number(tap, next, last), other, shift, columns};
                }
            }
        return to - start;
    }

    // What a row of the grid meets of the places; as above.
    int64_t of_grid(int64_t row, Meeting* to) const {
        const int64_t remainder = row % axes_[2].stride;
        const int64_t first = row / axes_[2].stride / axes_[1].size, second = row / axes_[2].stride % axes_[1].size;
        const Meeting* const start = to;
        for (int64_t tap = 0; tap < axes_[0].taps; tap++)
            for (int64_t next = 0; next < axes_[1].taps; next++) {
                const int64_t i = axes_[0].place(first, tap), j = axes_[1].place(second, next);
                if (i < 0 || j < 0) continue;
                for (int64_t last = 0; last < axes_[2].taps; last++) {
                    const int64_t shift = shifts_[size_t(last)].columns;
                    const Range columns{
                        std::max<int64_t>(0, shift), std::min(columns_of(remainder), place_columns() + shift)
                    };
                    if (shifts_[size_t(last)].remainder == remainder && columns.begin < columns.end)
                        *to++ = {number(tap, next, last), i * axes_[1].places + j, -shift, columns};
                }
            }
        return to - start;
    }

private:
    int64_t number(int64_t tap, int64_t next, int64_t last) const {
        return (tap * axes_[1].taps + next) * axes_[2].taps + last;
    }
    // Pixels of a row of the grid with this remainder.
    int64_t columns_of(int64_t remainder) const {
        return (axes_[2].size - remainder + axes_[2].stride - 1) / axes_[2].stride;
    }

    Axis axes_[3];
    std::vector<Shift> shifts_;
};

// An array and its end, beyond which nothing may be read.
template <typename T>
struct Span {
    const T* data;
    int64_t size;

    bool holds(int64_t first, int64_t count) const { return first >= 0 && first + count <= size; }

    // Copy runs of some vectors, the first at `first` and each `step` after the one before: their entries in `inside`,
    // and zeros.
    template <int vectors>
    void copy(int64_t first, Range inside, int64_t step, int runs, T* to) const {
        constexpr int64_t length = vectors * lanes<T>;
        for (int run = 0; run < runs; run++, first += step, to += length) {
            if (inside.begin == 0 && inside.end == length) {
                for (int v = 0; v < vectors; v++) store(to + v * lanes<T>, load(data + first + v * lanes<T>));
            } else if (holds(first, length)) {
                for (int v = 0; v < vectors; v++) {
                    const Integers<T> lane = lane_numbers<T>() + int(v * lanes<T>);
                    const auto in = (lane >= int(inside.begin)) & (lane < int(inside.end));
                    store(to + v * lanes<T>, in ? load(data + first + v * lanes<T>) : Vector<T>{});
                }
            } else {
                std::fill_n(to, length, T(0));
                for (int64_t i = inside.begin; i < inside.end; i++) to[i] = data[first + i];
            }
        }
    }
};

// Each row of `size` entries cut into `stride` rows, of the entries with the same remainder, with zeros beyond the end.
template <typename T>
void cut_rows(const T* whole, int64_t rows, int64_t size, int64_t stride, T* cut, int threads) {
    const int64_t columns = (size + stride - 1) / stride;
    parallel(useful_threads(threads, rows * size), [=](Team& team, int thread) {
        const Range range = share(rows, thread, team.threads);
        for (int64_t row = range.begin; row < range.end; row++)
            for (int64_t remainder = 0; remainder < stride; remainder++) {
                T* const to = cut + (row * stride + remainder) * columns;
                const int64_t some = (size - remainder + stride - 1) / stride;
                for (int64_t i = 0; i < some; i++) to[i] = whole[row * size + i * stride + remainder];
                std::fill(to + some, to + columns, T(0));
            }
    });
}

// The opposite.
template <typename T>
void join_rows(const T* cut, int64_t rows, int64_t size, int64_t stride, T* whole, int threads) {
    const int64_t columns = (size + stride - 1) / stride;
    parallel(useful_threads(threads, rows * size), [=](Team& team, int thread) {
        const Range range = share(rows, thread, team.threads);
        for (int64_t row = range.begin; row < range.end; row++)
            for (int64_t remainder = 0; remainder < stride; remainder++) {
                const T* const from = cut + (row * stride + remainder) * columns;
                const int64_t some = (size - remainder + stride - 1) / stride;
                for (int64_t i = 0; i < some; i++) whole[row * size + i * stride + remainder] = from[i];
            }
    });
}

// Call work with the number as a constant, from 1 to `most`.
template <int most, typename Work>
inline void with_constant(int64_t number, const Work& work) {
    if (number >= most) {
        work(std::integral_constant<int, most>());
    } else if constexpr (most > 1) {
        with_constant<most - 1>(number, work);
    }
}

}  // namespace hdcrf
