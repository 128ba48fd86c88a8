// The separable Gaussian over pixel positions: the kernel of hdcrf.pairwise.SmoothnessKernel.
//
// Both passes are one routine, a weighted sum of rows, some sums at a time: first over rows of the image, then over
// pixels of the row that came out. Weights differ from row to row, since they carry the normalisation.

#pragma once

#include <algorithm>

#include "threads.hpp"
#include "vectors.hpp"

namespace hdcrf {

constexpr int rows_at_once = 6;    // each row that is read counts for as many as possible
constexpr int pixels_at_once = 4;  // whose labels are often three vectors

// `wide` vectors of each of `sums` sums. Twelve vectors in all keep the arithmetic units busy, and leave registers for
// what is added and a weight.
//
// In a `band`, what is summed is the same taps for each sum, a row further down each time: the first rows and the last
// do not count for all. It has more taps than sums, less two.
template <int sums, int wide, typename T>
inline void weighted_sums_of(
    const T* in, int64_t in_stride, const T* weights, int64_t rows, bool band, T* out, int64_t out_stride
) {
    Vector<T> total[sums][wide] = {};
    const auto add = [&](int from, int to) __attribute__((always_inline)) {
        Vector<T> value[wide];
        for (int i = 0; i < wide; i++) value[i] = load(in + i * lanes<T>);
        for (int r = from; r < to; r++)
            for (int i = 0; i < wide; i++) total[r][i] += weights[r] * value[i];
        in += in_stride;
        weights += sums;
    };
    if (band) {
#pragma GCC unroll 8
        for (int t = 1; t < sums; t++) add(0, t);
        for (int64_t t = sums - 1; t < rows - sums + 1; t++) add(0, sums);
#pragma GCC unroll 8
        for (int t = 1; t < sums; t++) add(t, sums);
    } else {
        for (int64_t t = 0; t < rows; t++) add(0, sums);
    }
    for (int r = 0; r < sums; r++)
        for (int i = 0; i < wide; i++) store(out + r * out_stride + i * lanes<T>, total[r][i]);
}

// out[r · out_stride + c] = Σ_t weights[t · sums + r] in[t · in_stride + c], for r, `rows` t and `length` c.
//
// May read and write up to a vector beyond `length`.
template <int sums, typename T>
inline void weighted_sums(
    const T* in, int64_t in_stride, const T* weights, int64_t rows, bool band, T* out, int64_t out_stride,
    int64_t length
) {
    int64_t c = 0;
    const auto add = [&](auto wide) {
        weighted_sums_of<sums, wide>(in + c, in_stride, weights, rows, band, out + c, out_stride);
        c += wide * lanes<T>;
    };
    constexpr int widest = 12 / sums;
    while (c + (widest - 1) * lanes<T> < length) add(std::integral_constant<int, widest>());
    if constexpr (widest > 2)
        if (c + lanes<T> < length) add(std::integral_constant<int, 2>());
    if (c < length) add(std::integral_constant<int, 1>());
}

// The taps of a Gaussian along an axis, (2 radius + 1,) of them.
template <typename T>
struct Taps {
    const T* values;
    int64_t radius;
};

// y = L (G_rows ⊗ G_columns) R x for images (H, W, K), where L and R are products of a factor for the row and one for
// the column.
template <typename T>
class Smoothing {
public:
    const int64_t height, width, channels;
    int64_t stride;  // numbers a pixel in what comes out, K or more; those beyond K mean nothing

    // `down` the rows and `along` a row; `rows_*` (H,) and `columns_*` (W,) factors.
    Smoothing(
        int64_t height, int64_t width, int64_t channels, Taps<T> down, Taps<T> along, const T* rows_left,
        const T* columns_left, const T* rows_right, const T* columns_right
    )
        : height(height), width(width), channels(channels), down_(down), along_(along), rows_left_(rows_left),
          rows_right_(rows_right), flat_(channels <= lanes<T>) {
        const int64_t radius = along.radius;
        if (flat_) {  // few channels would leave most of a vector empty: pixels side by side fill it
            stride = channels;
            for (int64_t x = 0; x < width; x++) {
                left_.insert(left_.end(), size_t(channels), columns_left[x]);
                right_.insert(right_.end(), size_t(channels), columns_right[x]);
            }
            return;
        }
        stride = (channels + lanes<T> - 1) / lanes<T> * lanes<T>;
        // The pixels of a row, four at a time, share a table of weights where the factors do not vary.
        const int64_t blocks = (width + pixels_at_once - 1) / pixels_at_once;
        const size_t size = size_t((2 * radius + pixels_at_once) * pixels_at_once);
        table_of_block_.resize(size_t(blocks));
        std::vector<T> table(size);
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t first = block * pixels_at_once;
            for (int64_t t = 0; t < 2 * radius + pixels_at_once; t++)
                for (int r = 0; r < pixels_at_once; r++) {
                    const int64_t to = first + r, from = first - radius + t, tap = t - r;
                    const bool inside = to < width && from >= 0 && from < width && tap >= 0 && tap <= 2 * radius;
                    table[size_t(t * pixels_at_once + r)] =
                        inside ? along.values[tap] * columns_left[to] * columns_right[from] : T(0);
                }
            if (tables_.size() < size || !std::equal(table.begin(), table.end(), tables_.end() - int64_t(size)))
                tables_.insert(tables_.end(), table.begin(), table.end());
            table_of_block_[size_t(block)] = tables_.size() - size;
        }
    }

    struct Workspace {
        Buffer<T> vertical;    // some rows with zeros on both sides
        Buffer<T> horizontal;  // as many rows
        std::vector<T> weights;
    };

    int64_t row() const { return (width + pixels_at_once) * stride + lanes<T>; }  // between rows of what comes out

    Workspace workspace() const {
        Workspace space;
        space.vertical.resize(size_t(rows_at_once * padded_row() + lanes<T>));
        std::fill_n(space.vertical.data(), rows_at_once * padded_row() + lanes<T>, T(0));
        space.horizontal.resize(size_t(rows_at_once * row()));
        std::fill_n(space.horizontal.data(), rows_at_once * row(), T(0));
        space.weights.resize(size_t((2 * down_.radius + rows_at_once) * rows_at_once));
        return space;
    }

    // Smooth rows_at_once rows of an image, from `first` on, into space.horizontal.
    void smooth_rows(const T* image, int64_t first, Workspace& space) const {
        const int64_t radius = down_.radius;
        const int64_t low = std::max<int64_t>(0, first - radius);
        const int64_t high = std::min(height, first + rows_at_once + radius);
        for (int64_t from = low; from < high; from++)
            for (int r = 0; r < rows_at_once; r++) {
                const int64_t to = first + r, tap = from - to + radius;
                const bool inside = to < height && tap >= 0 && tap <= 2 * radius;
                space.weights[size_t((from - low) * rows_at_once + r)] =
                    inside ? down_.values[tap] * rows_left_[to] * rows_right_[from] : T(0);
            }
        const int64_t length = width * channels, padded = padded_row();
        T* vertical = space.vertical.data() + along_.radius * channels;
        // Whole vectors only: neither the image nor the pads have room for more.
        const int64_t whole = length - length % lanes<T>;
        const bool band = high - low == 2 * radius + rows_at_once && 2 * radius + 2 >= rows_at_once;
        weighted_sums<rows_at_once>(
            image + low * length, length, space.weights.data(), high - low, band, vertical, padded, whole
        );
        for (int64_t c = whole; c < length; c++)
            for (int r = 0; r < rows_at_once; r++) {
                T total = 0;
                for (int64_t t = 0; t < high - low; t++)
                    total += space.weights[size_t(t * rows_at_once + r)] * image[(low + t) * length + c];
                vertical[r * padded + c] = total;
            }
        for (int r = 0; r < rows_at_once && first + r < height; r++)
            flat_ ? flat_row(vertical + r * padded, space.horizontal.data() + r * row())
                  : blocked_row(space.vertical.data() + r * padded, space.horizontal.data() + r * row());
    }

private:
    int64_t padded_row() const { return (width + 2 * along_.radius + pixels_at_once) * channels + 2 * lanes<T>; }

    void blocked_row(const T* from, T* to) const {
        for (size_t block = 0; block < table_of_block_.size(); block++) {
            const int64_t x = int64_t(block) * pixels_at_once;
            weighted_sums<pixels_at_once>(
                from + x * channels, channels, tables_.data() + table_of_block_[block],
                2 * along_.radius + pixels_at_once, along_.radius > 0, to + x * stride, stride, channels
            );
        }
    }

    // `from` starts at the first pixel; the zeros before it belong to the buffer.
    void flat_row(T* from, T* to) const {
        const int64_t length = width * channels;
        for (int64_t c = 0; c < length; c++) from[c] *= right_[size_t(c)];
        const T* start = from - along_.radius * channels;
        int64_t c = 0;
        for (; c + 8 * lanes<T> <= length; c += 8 * lanes<T>) flat_sums<8>(start + c, c, to + c);
        for (; c + lanes<T> <= length; c += lanes<T>) flat_sums<1>(start + c, c, to + c);
        for (; c < length; c++) {
            T total = 0;
            for (int64_t t = 0; t < 2 * along_.radius + 1; t++) total += along_.values[t] * start[c + t * channels];
            to[c] = total * left_[size_t(c)];
        }
    }

    template <int wide>
    void flat_sums(const T* from, int64_t place, T* to) const {
        Vector<T> total[wide] = {};
        for (int64_t t = 0; t < 2 * along_.radius + 1; t++, from += channels)
            for (int i = 0; i < wide; i++) total[i] += along_.values[t] * load(from + i * lanes<T>);
        for (int i = 0; i < wide; i++)
            store(to + i * lanes<T>, total[i] * load(&left_[size_t(place + i * lanes<T>)]));
    }

    Taps<T> down_, along_;
    const T *rows_left_, *rows_right_;
    bool flat_;
    std::vector<T> tables_, left_, right_;
    std::vector<size_t> table_of_block_;
};

// The whole (B, H, W, K).
template <typename T>
void smooth(const Smoothing<T>& smoothing, const T* images, T* out, int64_t batch, int threads) {
    const int64_t height = smoothing.height, width = smoothing.width, channels = smoothing.channels;
    const int64_t blocks = (height + rows_at_once - 1) / rows_at_once;
    threads = useful_threads(threads, batch * height * width * channels);
    std::vector<typename Smoothing<T>::Workspace> spaces;
    for (int thread = 0; thread < threads; thread++) spaces.push_back(smoothing.workspace());
    parallel(threads, [&](Team& team, int thread) {
        const Range range = share(batch * blocks, thread, team.threads);
        auto& space = spaces[size_t(thread)];
        for (int64_t block = range.begin; block < range.end; block++) {
            const int64_t image = block / blocks, first = block % blocks * rows_at_once;
            const int64_t offset = image * height * width * channels;
            smoothing.smooth_rows(images + offset, first, space);
            for (int r = 0; r < rows_at_once && first + r < height; r++) {
                const T* from = space.horizontal.data() + r * smoothing.row();
                T* to = out + offset + (first + r) * width * channels;
                if (smoothing.stride == channels)
                    std::copy_n(from, width * channels, to);
                else  // whole vectors, each over what the one before wrote beyond its pixel
                    for (int64_t x = 0; x < width; x++)
                        for (int64_t c = 0; c < channels; c += lanes<T>) {
                            const Vector<T> value = load(from + x * smoothing.stride + c);
                            const int64_t place = x * channels + c, left = width * channels - place;
                            left >= lanes<T> ? store(to + place, value) : store_some(to + place, value, int(left));
                        }
            }
        }
    });
}

}  // namespace hdcrf
