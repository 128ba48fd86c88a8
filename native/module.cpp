// The kernels as Python functions: arrays in, arrays out. Python checks the arguments before; here only dtypes and
// layouts are.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <vector>

#include "argmax.hpp"
#include "grid_product.hpp"
#include "mean_field.hpp"
#include "mean_field_adjoint.hpp"
#include "permutohedral.hpp"
#include "self_term.hpp"
#include "simplex_projection.hpp"
#include "sparse_product.hpp"
#include "splat_blur_slice.hpp"
#include "window_products.hpp"
#include "window_sums.hpp"

namespace nb = nanobind;
using namespace hdcrf;

namespace {

template <typename T>
using Array = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;
template <typename T>
using Output = nb::ndarray<T, nb::c_contig, nb::device::cpu>;
// Arguments that are written to must say .noconvert(): nanobind would hand over a copy of what does not fit.
using Released = nb::call_guard<nb::gil_scoped_release>;

template <typename T>
const T* pointer(const std::optional<Array<T>>& array) {
    return array ? array->data() : nullptr;
}

// An array that owns what it shows.
template <typename T>
nb::ndarray<nb::numpy, T> owned(Buffer<T>&& content, std::initializer_list<size_t> shape) {
    auto* owner = new Buffer<T>(std::move(content));
    nb::capsule capsule(owner, [](void* p) noexcept { delete static_cast<Buffer<T>*>(p); });
    return nb::ndarray<nb::numpy, T>(owner->data(), shape, capsule);
}

template <typename T>
using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::device::cpu>;  // of any layout

template <typename T>
Points<T> points_of(const Matrix<T>& features) {
    return {features.data(), int64_t(features.shape(0)), int(features.shape(1)), features.stride(0), features.stride(1)};
}

template <typename T>
nb::object build_permutohedral(
    Matrix<T> features, Array<T> scales, std::optional<Array<int32_t>> batch, int halo, uint64_t seed, int threads
) {
    PermutohedralBuild<T> lattice(points_of<T>(features), scales.data(), pointer(batch), seed);
    const size_t size = size_t(features.shape(1)) + 1, points = size_t(features.shape(0));
    Buffer<int32_t> links;
    bool distinct;
    {
        nb::gil_scoped_release released;
        distinct = lattice.build(halo, threads);
        if (distinct) {
            links.resize(2 * size * size_t(lattice.num_vertices()));
            lattice.link(links.data(), threads);
        }
    }
    if (!distinct) return nb::none();
    const size_t cells = size_t(lattice.num_cells), vertices = size_t(lattice.num_vertices());
    return nb::make_tuple(
        owned(std::move(lattice.cell), {points}), owned(std::move(lattice.weights), {points, size}),
        owned(std::move(lattice.cell_vertices), {cells, size}), owned(std::move(lattice.ranks), {cells, size}),
        owned(std::move(lattice.coordinates), {vertices, size - 1 + (batch ? 1 : 0)}),
        owned(std::move(links), {size, vertices, size_t(2)})
    );
}

template <typename T>
Taps<T> taps(const Array<T>& array) {
    return {array.data(), int64_t(array.size() / 2)};
}

// A mean field with the arrays that it reads, and the memory that it works in.
template <typename T>
class MeanFieldRun {
public:
    MeanFieldRun(
        Array<T> logits, std::vector<nb::tuple> lattices, std::optional<nb::tuple> smoothing,
        std::optional<Array<T>> own, std::optional<Array<T>> reward, int threads
    )
        : logits_(logits), own_(own) {
        field_.points = int64_t(logits.shape(0));
        field_.labels = int64_t(logits.shape(1));
        field_.logits = logits.data();
        field_.own = pointer(own_);
        if (reward) {
            const int64_t rows = reward->ndim() == 1 ? 1 : field_.labels;
            field_.costs = reward->ndim() == 1 ? Costs::diagonal : Costs::full;
            reward_.assign(size_t(rows * field_.stride()), T(0));
            for (int64_t row = 0; row < rows; row++)
                std::copy_n(reward->data() + row * field_.labels, field_.labels, &reward_[size_t(row * field_.stride())]);
            field_.reward = reward_.data();
        }
        for (const nb::tuple& of : lattices) {
            const LatticeArrays& arrays = lattices_.emplace_back(LatticeArrays{
                nb::cast<Array<int32_t>>(of[0]), nb::cast<Array<int32_t>>(of[1]), nb::cast<Array<int32_t>>(of[3]),
                nb::cast<Array<T>>(of[2]), nb::cast<std::optional<Array<T>>>(of[4]),
                nb::cast<std::optional<Array<T>>>(of[5])
            });
            field_.lattices.push_back({
                int64_t(arrays.links.shape(1)), int(arrays.weights.shape(1)), int(arrays.links.shape(0)),
                nb::cast<int>(of[6]), arrays.cell.data(), arrays.cell_vertices.data(), arrays.weights.data(),
                arrays.links.data(), pointer(arrays.left), pointer(arrays.right), nb::cast<T>(of[7])
            });
        }
        if (smoothing) {
            const nb::tuple& of = *smoothing;
            for (size_t i = 0; i < 6; i++) factors_[i] = nb::cast<Array<T>>(of[i]);
            field_.smoothing_weight = nb::cast<T>(of[6]);
            smoothing_ = std::make_unique<Smoothing<T>>(
                int64_t(factors_[2].size()), int64_t(factors_[3].size()), field_.channels(), taps(factors_[0]),
                taps(factors_[1]), factors_[2].data(), factors_[3].data(), factors_[4].data(), factors_[5].data()
            );
            field_.smoothing = smoothing_.get();
        }
        space_ = field_.workspace(threads);
    }

    bool step(std::optional<Array<T>> previous, Output<T> next, std::optional<Output<T>> updated, bool more) {
        return field_.step(
            pointer(previous), next.data(), updated ? updated->data() : nullptr, previous.has_value(), more, space_
        );
    }
    int64_t channels() const { return field_.channels(); }

private:
    struct LatticeArrays {
        Array<int32_t> cell, cell_vertices, links;
        Array<T> weights;
        std::optional<Array<T>> left, right;
    };

    Array<T> logits_;
    std::optional<Array<T>> own_;
    std::vector<T> reward_;
    std::vector<LatticeArrays> lattices_;
    Array<T> factors_[6];
    std::unique_ptr<Smoothing<T>> smoothing_;
    MeanField<T> field_;
    typename MeanField<T>::Workspace space_;
};

template <typename T>
SplatBlurSlice<T> lattice_filter(
    const Array<T>& values, const Array<int32_t>& cell, const Array<int32_t>& cell_vertices, const Array<T>& weights,
    const Array<int32_t>& links, int order, T scale, bool adjoint
) {
    SplatBlurSlice<T> lattice;
    lattice.points = int64_t(values.shape(0));
    lattice.channels = int64_t(values.shape(1));
    lattice.corners = int(weights.shape(1));
    lattice.axes = int(links.shape(0));
    lattice.vertices = int64_t(links.shape(1));
    lattice.order = order;
    lattice.cell = cell.data();
    lattice.cell_vertices = cell_vertices.data();
    lattice.weights = weights.data();
    lattice.links = links.data();
    lattice.scale = scale;
    lattice.adjoint = adjoint;
    return lattice;
}

template <typename T, typename I>
void define_products(nb::module_& module) {
    module.def(
        "sparse_product",
        [](Array<T> values, Array<T> weights, Array<I> row_pointers, Array<I> columns, Output<T> out, int threads) {
            sparse_product(
                values.data(), weights.data(), row_pointers.data(), columns.data(), out.data(),
                int64_t(out.shape(0)), int64_t(out.shape(1)), threads
            );
        },
        nb::arg("values"), nb::arg("weights"), nb::arg("row_pointers"), nb::arg("columns"),
        nb::arg("out").noconvert(), nb::arg("threads"), Released()
    );
    module.def(
        "sampled_product",
        [](Array<T> left, Array<T> right, Array<I> row_pointers, Array<I> columns, Output<T> out, int threads) {
            sampled_product(
                left.data(), right.data(), row_pointers.data(), columns.data(), out.data(), int64_t(left.shape(0)),
                int64_t(left.shape(1)), threads
            );
        },
        nb::arg("left"), nb::arg("right"), nb::arg("row_pointers"), nb::arg("columns"), nb::arg("out").noconvert(),
        nb::arg("threads"), Released()
    );
}

template <typename T>
void window_products(
    std::optional<Array<T>> values, std::optional<Array<T>> kernel, std::optional<Array<T>> weight,
    std::optional<Array<T>> outputs, std::optional<Output<T>> of_values, std::optional<Output<T>> of_kernel,
    std::optional<Output<T>> of_weight, std::optional<Output<T>> of_outputs, Array<int64_t> numbers, int groups,
    int threads
) {
    const Window window(numbers.data());
    const auto size = [](const auto& given, const auto& wanted, size_t axis) {
        return int64_t(given ? given->shape(axis) : wanted->shape(axis));
    };
    const auto written = [](const auto& wanted) { return wanted ? wanted->data() : nullptr; };
    const int64_t batch = size(values, of_values, 0), channels = size(values, of_values, 1);
    const T *x = pointer(values), *k = pointer(kernel), *w = pointer(weight), *g = pointer(outputs);
    T *const of_x = written(of_values), *const of_k = written(of_kernel), *const of_g = written(of_outputs);
    const nb::gil_scoped_release released;
    if (weight || of_weight) {
        const WindowProducts<T> products{window, batch, channels, size(outputs, of_outputs, 1), groups, x, k, w, g};
        if (of_weight) products.weight_gradient(of_weight->data(), threads);
        if (products.by_channels()) {
            if (of_g) TapSums<T, false, OfWeightedProduct>{window, batch, channels, k, x, {}, w}.run(of_g, threads);
            if (of_x) TapSums<T, true, OfWeightedProduct>{window, batch, channels, k, g, {}, w}.run(of_x, threads);
            if (of_k) ChannelSums<T, OfWeightedBoth>{window, batch, channels, x, g, w}.run(of_k, threads);
            return;
        }
        if (of_g) products.convolve(of_g, threads);
        if (of_x || of_k) products.spread(of_x, of_k, threads);
    } else {
        if (of_g) TapSums<T, false, OfProduct>{window, batch, channels, k, x, {}, {}}.run(of_g, threads);
        if (of_x) TapSums<T, true, OfProduct>{window, batch, channels, k, g, {}, {}}.run(of_x, threads);
        if (of_k) ChannelSums<T, OfBoth>{window, batch, channels, x, g, {}}.run(of_k, threads);
    }
}

template <typename T>
void define_window(nb::module_& module) {
    module.def(
        "cut_rows",
        [](Array<T> whole, int64_t size, int64_t stride, Output<T> cut, int threads) {
            cut_rows(whole.data(), int64_t(whole.size()) / size, size, stride, cut.data(), threads);
        },
        nb::arg("whole"), nb::arg("size"), nb::arg("stride"), nb::arg("cut").noconvert(), nb::arg("threads"), Released()
    );
    module.def(
        "join_rows",
        [](Array<T> cut, int64_t size, int64_t stride, Output<T> whole, int threads) {
            join_rows(cut.data(), int64_t(whole.size()) / size, size, stride, whole.data(), threads);
        },
        nb::arg("cut"), nb::arg("size"), nb::arg("stride"), nb::arg("whole").noconvert(), nb::arg("threads"), Released()
    );
    module.def(
        "window_products", &window_products<T>, nb::arg("values").none(), nb::arg("kernel").none(),
        nb::arg("weight").none(), nb::arg("outputs").none(), nb::arg("of_values").noconvert().none(),
        nb::arg("of_kernel").noconvert().none(), nb::arg("of_weight").noconvert().none(),
        nb::arg("of_outputs").noconvert().none(), nb::arg("window"), nb::arg("groups"), nb::arg("threads")
    );
    module.def(
        "window_distances",
        [](Array<T> features, Array<T> centres, bool absolute, T scale, Output<T> out, Array<int64_t> numbers,
           int threads) {
            const Window window(numbers.data());
            const int64_t batch = int64_t(features.shape(0)), channels = int64_t(features.shape(1));
            const T *f = features.data(), *c = centres.data();
            if (absolute)
                ChannelSums<T, OfMagnitude>{window, batch, channels, f, c, {}, scale}.run(out.data(), threads);
            else
                ChannelSums<T, OfSquare>{window, batch, channels, f, c, {}, scale}.run(out.data(), threads);
        },
        nb::arg("features"), nb::arg("centres"), nb::arg("absolute"), nb::arg("scale"), nb::arg("out").noconvert(),
        nb::arg("window"), nb::arg("threads"), Released()
    );
    module.def(
        "window_difference_sums",
        [](Array<T> features, Array<T> centres, Array<T> factors, bool absolute, Output<T> of_features,
           Output<T> of_centres, Array<int64_t> numbers, int threads) {
            const Window window(numbers.data());
            const int64_t batch = int64_t(features.shape(0)), channels = int64_t(features.shape(1));
            const T *f = features.data(), *c = centres.data(), *a = factors.data();
            const auto sums = [&](auto term) {
                using Term = decltype(term);
                TapSums<T, true, Term>{window, batch, channels, a, c, f, {}}.run(of_features.data(), threads);
                TapSums<T, false, Term>{window, batch, channels, a, f, c, {}}.run(of_centres.data(), threads);
            };
            if (absolute)
                sums(OfSign());
            else
                sums(OfDifference());
        },
        nb::arg("features"), nb::arg("centres"), nb::arg("factors"), nb::arg("absolute"),
        nb::arg("of_features").noconvert(), nb::arg("of_centres").noconvert(), nb::arg("window"), nb::arg("threads"),
        Released()
    );
}

template <typename T>
void define(nb::module_& module, const char* mean_field) {
    module.def(
        "argmax",
        [](Array<T> values, Output<int64_t> out, int threads) {
            argmax(values.data(), out.data(), int64_t(values.shape(0)), int64_t(values.shape(1)), threads);
        },
        nb::arg("values"), nb::arg("out").noconvert(), nb::arg("threads"), Released()
    );
    define_products<T, int32_t>(module);
    define_products<T, int64_t>(module);
    module.def(
        "extents",
        [](Matrix<T> features, Output<T> low, Output<T> high, int threads) {
            extents(points_of<T>(features), low.data(), high.data(), threads);
        },
        nb::arg("features"), nb::arg("low").noconvert(), nb::arg("high").noconvert(), nb::arg("threads"), Released()
    );
    module.def(
        "permutohedral", &build_permutohedral<T>, nb::arg("features"), nb::arg("scales"), nb::arg("batch").none(),
        nb::arg("halo"), nb::arg("seed"), nb::arg("threads")
    );
    module.def(
        "filter",
        [](Array<T> values, std::optional<Array<T>> left, std::optional<Array<T>> right, Array<int32_t> cell,
           Array<int32_t> cell_vertices, Array<T> weights, Array<int32_t> links, int order, T scale, bool adjoint,
           Output<T> out, int threads) {
            const auto lattice = lattice_filter(values, cell, cell_vertices, weights, links, order, scale, adjoint);
            const nb::gil_scoped_release released;
            lattice.filter(values.data(), pointer(left), pointer(right), out.data(), threads);
        },
        nb::arg("values"), nb::arg("left").none(), nb::arg("right").none(), nb::arg("cell"), nb::arg("cell_vertices"),
        nb::arg("weights"), nb::arg("links"), nb::arg("order"), nb::arg("scale"), nb::arg("adjoint"),
        nb::arg("out").noconvert(), nb::arg("threads")
    );
    module.def(
        "symmetric_filter",
        [](Array<T> values, Array<int32_t> cell, Array<int32_t> cell_vertices, Array<T> weights, Array<int32_t> links,
           int order, T scale, Output<T> out, int threads) {
            const auto lattice = lattice_filter(values, cell, cell_vertices, weights, links, order, scale, false);
            const nb::gil_scoped_release released;
            lattice.symmetric_filter(values.data(), out.data(), threads);
        },
        nb::arg("values"), nb::arg("cell"), nb::arg("cell_vertices"), nb::arg("weights"), nb::arg("links"),
        nb::arg("order"), nb::arg("scale"), nb::arg("out").noconvert(), nb::arg("threads")
    );
    module.def(
        "filter_weights_gradient",
        [](Array<T> values, Array<T> gradient, std::optional<Array<T>> left, std::optional<Array<T>> right,
           Array<int32_t> cell, Array<int32_t> cell_vertices, Array<T> weights, Array<int32_t> links, int order,
           T scale, bool adjoint, Output<T> out, int threads) {
            const auto lattice = lattice_filter(values, cell, cell_vertices, weights, links, order, scale, adjoint);
            const nb::gil_scoped_release released;
            lattice.weights_gradient(values.data(), gradient.data(), pointer(left), pointer(right), out.data(), threads);
        },
        nb::arg("values"), nb::arg("gradient"), nb::arg("left").none(), nb::arg("right").none(), nb::arg("cell"),
        nb::arg("cell_vertices"), nb::arg("weights"), nb::arg("links"), nb::arg("order"), nb::arg("scale"),
        nb::arg("adjoint"), nb::arg("out").noconvert(), nb::arg("threads")
    );
    module.def(
        "smooth",
        [](Array<T> images, Array<T> down, Array<T> along, Array<T> rows_left, Array<T> columns_left,
           Array<T> rows_right, Array<T> columns_right, Output<T> out, int threads) {
            const Smoothing<T> smoothing(
                int64_t(images.shape(1)), int64_t(images.shape(2)), int64_t(images.shape(3)), taps(down), taps(along),
                rows_left.data(), columns_left.data(), rows_right.data(), columns_right.data()
            );
            smooth(smoothing, images.data(), out.data(), int64_t(images.shape(0)), threads);
        },
        nb::arg("images"), nb::arg("down"), nb::arg("along"), nb::arg("rows_left"), nb::arg("columns_left"),
        nb::arg("rows_right"), nb::arg("columns_right"), nb::arg("out").noconvert(), nb::arg("threads"), Released()
    );
    module.def(
        "corner_kernel",
        [](Array<int32_t> cell_vertices, Array<int16_t> ranks, Array<int32_t> links, int order, Output<T> out,
           int threads) {
            const SelfTerm<T> term{int64_t(ranks.shape(0)), int64_t(links.shape(1)), int(ranks.shape(1)), order,
                                   cell_vertices.data(),    ranks.data(),            links.data()};
            term.corner_kernel(out.data(), threads);
        },
        nb::arg("cell_vertices"), nb::arg("ranks"), nb::arg("links"), nb::arg("order"), nb::arg("out").noconvert(),
        nb::arg("threads"), Released()
    );
    module.def(
        "quadratic_form",
        [](Array<T> weights, Array<T> matrices, Array<int32_t> cell, T scale, Output<T> out, int threads) {
            quadratic_form(
                weights.data(), matrices.data(), cell.data(), scale, out.data(), int64_t(weights.shape(0)),
                int(weights.shape(1)), threads
            );
        },
        nb::arg("weights"), nb::arg("matrices"), nb::arg("cell"), nb::arg("scale"), nb::arg("out").noconvert(),
        nb::arg("threads"), Released()
    );
    module.def(
        "mean_field_adjoint",
        [](Array<T> marginals, Array<T> gradient, std::optional<Array<T>> appearance, std::optional<Array<T>> smoothness,
           T appearance_weight, T smoothness_weight, std::optional<Array<T>> own, bool pairs, Output<T> next,
           Output<T> total, std::optional<Output<T>> of_own, int threads) {
            MeanFieldAdjoint<T> adjoint{int64_t(marginals.shape(0)), int64_t(marginals.shape(1)), pairs,
                                        marginals.data(), gradient.data()};
            adjoint.appearance = pointer(appearance);
            adjoint.smoothness = pointer(smoothness);
            adjoint.appearance_weight = appearance_weight;
            adjoint.smoothness_weight = smoothness_weight;
            adjoint.own = pointer(own);
            const nb::gil_scoped_release released;
            return adjoint.run(next.data(), total.data(), of_own ? of_own->data() : nullptr, threads);
        },
        nb::arg("marginals"), nb::arg("gradient"), nb::arg("appearance").none(), nb::arg("smoothness").none(),
        nb::arg("appearance_weight"), nb::arg("smoothness_weight"), nb::arg("own").none(), nb::arg("pairs"),
        nb::arg("next").noconvert(), nb::arg("total").noconvert(), nb::arg("of_own").noconvert().none(),
        nb::arg("threads")
    );
    module.def(
        "grid_product",
        [](Array<T> weights, Array<int64_t> offsets, Array<T> vectors, Output<T> out, int threads) {
            const GridProduct<T> terms{
                weights.data(), offsets.data(), int64_t(weights.shape(0)), int64_t(weights.shape(1)),
                int64_t(weights.shape(2)), int64_t(weights.shape(4)), int64_t(weights.shape(5))
            };
            terms.run(vectors.data(), out.data(), int64_t(out.shape(1)), threads);
        },
        nb::arg("weights"), nb::arg("offsets"), nb::arg("vectors"), nb::arg("out").noconvert(), nb::arg("threads"),
        Released()
    );
    module.def(
        "project_simplex",
        [](Array<T> values, T leak, Output<T> out, int threads) {
            project_simplex(
                values.data(), leak, out.data(), int64_t(values.shape(0)), int64_t(values.shape(1)), threads
            );
        },
        nb::arg("values"), nb::arg("leak"), nb::arg("out").noconvert(), nb::arg("threads"), Released()
    );
    module.def(
        "project_simplex_adjoint",
        [](Array<T> gradient, Array<T> projected, T leak, Output<T> out, int threads) {
            project_simplex_adjoint(
                gradient.data(), projected.data(), leak, out.data(), int64_t(gradient.shape(0)),
                int64_t(gradient.shape(1)), threads
            );
        },
        nb::arg("gradient"), nb::arg("projected"), nb::arg("leak"), nb::arg("out").noconvert(), nb::arg("threads"),
        Released()
    );
    define_window<T>(module);
    nb::class_<MeanFieldRun<T>>(module, mean_field)
        .def(
            nb::init<
                Array<T>, std::vector<nb::tuple>, std::optional<nb::tuple>, std::optional<Array<T>>,
                std::optional<Array<T>>, int>(),
            nb::arg("logits"), nb::arg("lattices"), nb::arg("smoothing").none(), nb::arg("own").none(),
            nb::arg("reward").none(), nb::arg("threads")
        )
        .def(
            "step", &MeanFieldRun<T>::step, nb::arg("previous").none(), nb::arg("next").noconvert(),
            nb::arg("updated").noconvert().none(), nb::arg("more"), Released()
        )
        .def_prop_ro("channels", &MeanFieldRun<T>::channels);
}

template <typename I>
void define_transpose(nb::module_& module) {
    module.def(
        "transpose",
        [](Array<I> columns, Output<I> pointers, Output<I> order, int threads) {
            transpose(
                columns.data(), int64_t(columns.shape(0)), int64_t(columns.shape(1)), int64_t(pointers.size()) - 1,
                pointers.data(), order.data(), threads
            );
        },
        nb::arg("columns"), nb::arg("pointers").noconvert(), nb::arg("order").noconvert(), nb::arg("threads"), Released()
    );
}

}  // namespace

NB_MODULE(_native, module) {
    OpenMP::pool();  // which notices forks from now on
    module.def("split_small_work", [](bool split) { split_small_work().store(split); });
    module.doc() = "Compiled kernels; each is explained by the PyTorch reference that it stands for.";
    define<float>(module, "MeanField32");
    define<double>(module, "MeanField64");
    define_transpose<int32_t>(module);
    define_transpose<int64_t>(module);
}
