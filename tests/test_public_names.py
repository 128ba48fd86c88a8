"""The public API, frozen: a change here is a change for users and belongs in the changelog."""

import inspect

import pytest

import hdcrf
import hdcrf.compat
import hdcrf.folders
import hdcrf.gaussian
import hdcrf.pac
import hdcrf.relaxed
import lattice
import voxel

NAMES = {
    hdcrf: """CRFGrad Compatibility DenseCRF ExactGaussian MeanFieldResult PacCRF PairwiseKernel PointCRF
        PointCRFGrad SmoothnessKernel TrilateralCRF VideoCRF VolumeCRF VolumeCRFGrad bilateral_features
        build_filter gaussian_filter labels_from_annotation logits_from_labels logits_from_probabilities
        mean_field pairwise_kernel point_features points_in_blocks project_simplex refine round_labels
        transfer_labels trilateral_features video_features video_in_windows volume_features
        volume_in_blocks""",
    hdcrf.compat: "densecrf eigen install utils",
    hdcrf.compat.densecrf: """CONST_KERNEL ConstUnary DIAG_KERNEL DenseCRF DenseCRF2D FULL_KERNEL KernelType
        LogisticUnary NORMALIZE_AFTER NORMALIZE_BEFORE NORMALIZE_SYMMETRIC NO_NORMALIZATION NormalizationType
        Unary""",
    hdcrf.compat.eigen: "MatrixXf VectorXf matrixXf vectorXf",
    hdcrf.compat.utils: """compute_unary create_pairwise_bilateral create_pairwise_gaussian softmax_to_unary
        unary_from_labels unary_from_softmax""",
    hdcrf.folders: """Failure LabelScores Outcome Pair Prediction find_pairs read_labels read_prediction
        score_labels scores_table total_scores write_report write_scores_csv write_scores_json""",
    hdcrf.gaussian: """BilateralSolver ConvergenceError DenseGaussianCRF GaussianCRF
        GaussianMeanFieldNetwork GridTerms LowRankTerms MultiResolutionTerms NotPositiveDefiniteError
        PairwiseTerms PottsMatrix SimilarityTerms Solution SparseGaussianCRF VideoGaussianCRF VideoTerms
        affinity affinity_loss bilateral_solve conjugate_gradient energy gauss_seidel gaussian_mean_field
        gaussian_mean_field_energy gmres jacobi margin_loss pixel_similarity similarity_loss solve
        video_in_contexts""",
    hdcrf.pac: """AdaptingKernel JointUpsampler PacCRF PacConv2d PacConv3d PacConvTranspose2d PacPool2d
        adapting_kernel joint_bilateral_upsample pac_conv2d pac_conv3d pac_conv_transpose2d pac_pool2d
        swap_in_pac""",
    hdcrf.relaxed: """BilateralPotential CRFGrad PairwisePotential PointCRFGrad RelaxedEnergy
        RelaxedResult SpatialPotential VolumeCRFGrad graduated_descent parallel_mean_field project_simplex
        projected_gradient round_labels""",
    lattice: """BilateralConv PermutohedralConv PermutohedralLattice barycentric_weights
        corner_coordinates elevate enclosing_simplex neighbourhood_lattice neighbourhood_offsets""",
    voxel: """CoordinateIndex CoordinateRangeError FilterOperator GaussianConv SparseBatchNorm SparseConv
        SparseConvTranspose SparseMatrix SparseTensor SplatBlurSlice VoxelGrid VoxelSet kernel_map
        kernel_offsets pairs_within unique_rows""",
}

SIGNATURES = {
    hdcrf.DenseCRF: """num_labels iterations=5 appearance_weight=10.0 appearance_sigma_xy=80.0
        appearance_sigma_rgb=13.0 smoothness_weight=3.0 smoothness_sigma=3.0 compatibility='potts'
        normalization='symmetric' exclude_self=True method='permutohedral' order=1 halo=0 learn=('weights',)
        tolerance=None output='marginals' backend='auto'""",
    hdcrf.VideoCRF: """num_labels appearance_weight=10.0 appearance_sigma_xy=80.0 appearance_sigma_t=3.0
        appearance_sigma_rgb=13.0 smoothness_weight=3.0 smoothness_sigma=3.0 options""",
    hdcrf.VolumeCRF: """num_labels appearance_weight=10.0 appearance_sigma_xyz=20.0
        appearance_sigma_intensity=13.0 smoothness_weight=3.0 smoothness_sigma=1.5 spacing=(1.0, 1.0, 1.0)
        options""",
    hdcrf.PointCRF: """num_labels appearance_weight=10.0 appearance_sigma_xyz=0.3 appearance_sigma_rgb=13.0
        appearance_sigma_normal=None appearance_sigma_intensity=None smoothness_weight=3.0
        smoothness_sigma=0.1 options""",
    hdcrf.PointCRF.forward: "self logits positions colours=None normals=None intensities=None batch=None",
    hdcrf.TrilateralCRF: """num_labels weight=10.0 sigma_xyz=4.0 sigma_t=3.0 sigma_rgb=13.0 voxel_size=1.0
        options""",
    hdcrf.TrilateralCRF.forward: "self logits colours",
    hdcrf.video_in_windows: "crf frames window=16 overlap=8",
    hdcrf.volume_in_blocks: """crf logits guide block=(64, 128, 128) overlap=(16, 32, 32) progress=None""",
    hdcrf.points_in_blocks: """crf logits positions block overlap colours=None normals=None intensities=None
        batch=None progress=None""",
    hdcrf.transfer_labels: """features labels query num_labels=None return_probabilities=False batch=None
        query_batch=None method='permutohedral' order=1 halo=None backend='auto'""",
    hdcrf.refine: """image probabilities=None labels=None num_labels=None gt_prob=0.7 iterations=10
        return_marginals=False progress=None options""",
    hdcrf.gaussian_filter: """features values method='permutohedral' normalization='none' batch=None
        query=None query_batch=None order=1 halo=0 backend='auto'""",
    hdcrf.DenseCRF.from_params: "path num_labels options",
    hdcrf.DenseCRF.infer: "self logits guide track=False return_logits=True progress=None",
    hdcrf.mean_field: """logits kernels compatibility iterations exclude_self=True tolerance=None track=False
        return_logits=True progress=None""",
    hdcrf.folders.find_pairs: "images predictions truths=None note=<built-in function warn>",
    hdcrf.folders.read_prediction: """path shape gt_prob unknown=() num_labels=None
        note=<built-in function warn>""",
    hdcrf.folders.read_labels: "role path shape",
    hdcrf.folders.score_labels: "labels truth ignore=None boundaries=True",
    hdcrf.folders.total_scores: "outcomes",
    hdcrf.folders.write_report: "file outcomes failures settings title unknown=() hints=()",
    hdcrf.build_filter: "features method='permutohedral' batch=None order=1 halo=0 backend='auto'",
    hdcrf.pairwise_kernel: "operator weight normalization",
    hdcrf.Compatibility: "num_labels kind='potts' learn=False",
    hdcrf.bilateral_features: "guide sigma_xy sigma_rgb",
    hdcrf.video_features: "guide sigma_xy sigma_t sigma_rgb",
    hdcrf.volume_features: "guide sigma_xyz sigma_intensity spacing=(1.0, 1.0, 1.0)",
    hdcrf.point_features: """positions sigma_xyz colours=None sigma_rgb=None normals=None sigma_normal=None
        intensities=None sigma_intensity=None""",
    hdcrf.trilateral_features: "voxels sigma_xyz sigma_t sigma_rgb voxel_size=1.0",
    hdcrf.logits_from_probabilities: "probabilities dim=1 floor=1e-06",
    hdcrf.logits_from_labels: "labels num_labels gt_prob=0.7 dtype=torch.float32",
    hdcrf.labels_from_annotation: "annotation",
    hdcrf.compat.densecrf.DenseCRF: "nvar nlabels _ __",
    hdcrf.compat.densecrf.DenseCRF2D: "w h nlabels _ __",
    hdcrf.compat.densecrf.DenseCRF.setUnaryEnergy: "self u f=None",
    hdcrf.compat.densecrf.DenseCRF.addPairwiseEnergy: """self features compat
        kernel=<KernelType.DIAG_KERNEL: 1> normalization=<NormalizationType.NORMALIZE_SYMMETRIC: 3>""",
    hdcrf.compat.densecrf.DenseCRF2D.addPairwiseGaussian: """self sxy compat
        kernel=<KernelType.DIAG_KERNEL: 1> normalization=<NormalizationType.NORMALIZE_SYMMETRIC: 3>""",
    hdcrf.compat.densecrf.DenseCRF2D.addPairwiseBilateral: """self sxy srgb rgbim compat
        kernel=<KernelType.DIAG_KERNEL: 1> normalization=<NormalizationType.NORMALIZE_SYMMETRIC: 3>""",
    hdcrf.compat.densecrf.DenseCRF.inference: "self niter",
    hdcrf.compat.densecrf.DenseCRF.startInference: "self",
    hdcrf.compat.densecrf.DenseCRF.stepInference: "self Q tmp1 tmp2",
    hdcrf.compat.densecrf.DenseCRF.klDivergence: "self Q",
    hdcrf.compat.densecrf.DenseCRF.pairwiseEnergy: "self labels term=-1",
    hdcrf.compat.utils.unary_from_labels: "labels n_labels gt_prob zero_unsure=True",
    hdcrf.compat.utils.compute_unary: "labels M GT_PROB=0.5",
    hdcrf.compat.utils.unary_from_softmax: "sm scale=None clip=1e-05",
    hdcrf.compat.utils.softmax_to_unary: "sm GT_PROB=1",
    hdcrf.compat.utils.create_pairwise_gaussian: "sdims shape",
    hdcrf.compat.utils.create_pairwise_bilateral: "sdims schan img chdim=-1",
    hdcrf.gaussian.bilateral_solve: """operator target confidence smoothness=1.0 precondition=True
        tolerance=None max_iterations=None on_failure='raise'""",
    hdcrf.gaussian.BilateralSolver: """sigma_xy=4.0 sigma_rgb=8.0 smoothness=4.0 method='permutohedral'
        order=1 halo=0 learn=() tolerance=None max_iterations=None on_failure='raise' backend='auto'""",
    hdcrf.gaussian.BilateralSolver.forward: "self target confidence guide",
    hdcrf.SmoothnessKernel: "shape sigma weight normalization truncate=3.0 backend='auto'",
    hdcrf.gaussian.LowRankTerms: "embeddings",
    hdcrf.gaussian.VideoTerms: "spatial temporal neighbourhood='full'",
    hdcrf.gaussian.GridTerms: "weights connectivity=4",
    hdcrf.gaussian.conjugate_gradient: """product right_hand_side diagonal=None start=None tolerance=None
        max_iterations=None on_failure='raise' remedy='add to its diagonal'""",
    hdcrf.gaussian.MultiResolutionTerms: "grids links",
    hdcrf.gaussian.jacobi: """product diagonal right_hand_side start=None tolerance=None max_iterations=None
        on_failure='raise'""",
    hdcrf.gaussian.gauss_seidel: """matrix right_hand_side start=None tolerance=None max_iterations=None
        on_failure='raise'""",
    hdcrf.gaussian.gmres: """product right_hand_side restart=50 start=None tolerance=None max_iterations=None
        on_failure='raise'""",
    hdcrf.gaussian.solve: """terms unary regularization=1.0 guarantee=False method='auto' precondition=False
        tolerance=None max_iterations=None on_failure='raise'""",
    hdcrf.gaussian.energy: "terms unary scores regularization=1.0 guarantee=False",
    hdcrf.gaussian.SparseGaussianCRF: "num_labels feature_channels connectivity=4 potts=False options",
    hdcrf.gaussian.DenseGaussianCRF: "num_labels feature_channels embedding=128 strength=0.5 options",
    hdcrf.gaussian.VideoGaussianCRF: """num_labels feature_channels embedding=128 neighbourhood='full'
        strength=0.5 options""",
    hdcrf.gaussian.DenseGaussianCRF.forward: "self unary features",
    hdcrf.gaussian.video_in_contexts: "crf unary features context=4 overlap=2",
    hdcrf.gaussian.affinity: "terms pixel label=None item=0",
    hdcrf.gaussian.affinity_loss: """embeddings labels threshold=0.0 pairs=4096 ignore_index=-1
        generator=None""",
    hdcrf.gaussian.GaussianMeanFieldNetwork: """num_labels feature_channels num_filters=None window=23
        layers=5 partition='columns'""",
    hdcrf.gaussian.GaussianMeanFieldNetwork.forward: "self unary features",
    hdcrf.gaussian.SimilarityTerms: "similarity compatibility",
    hdcrf.gaussian.gaussian_mean_field: "terms unary layers=5 partition='columns' start=None",
    hdcrf.gaussian.gaussian_mean_field_energy: "terms unary scores",
    hdcrf.gaussian.margin_loss: "scores labels margin=0.5 ignore_index=-1",
    hdcrf.gaussian.pixel_similarity: "features window=23",
    hdcrf.gaussian.similarity_loss: "similarity labels threshold=4.5399929762484854e-05 ignore_index=-1",
    hdcrf.CRFGrad: """num_labels channels=3 window=9 spatial_weight=0.0 spatial_sigma=3.0
        neighbourhood=1 bilateral_weight=4.0 sigma_xy=80.0 sigma_rgb=13.0 options""",
    hdcrf.VolumeCRFGrad: """num_labels channels=1 window=5 spatial_weight=0.0 spatial_sigma=1.5
        neighbourhood=1 bilateral_weight=4.0 sigma_xyz=20.0 sigma_intensity=13.0 spacing=(1.0, 1.0,
        1.0) options""",
    hdcrf.PointCRFGrad: "num_labels dimension neighbourhood=1 bilateral_weight=4.0 options",
    hdcrf.CRFGrad.forward: "self logits guide=None",
    hdcrf.CRFGrad.infer: "self logits guide=None track=False progress=None",
    hdcrf.CRFGrad.labels: "self logits guide=None",
    hdcrf.PointCRFGrad.forward: "self logits features batch=None",
    hdcrf.project_simplex: "x dim=-1 leak=0.0 backend='auto'",
    hdcrf.round_labels: "energy q",
    hdcrf.relaxed.RelaxedEnergy: "unary potentials batch=None",
    hdcrf.relaxed.SpatialPotential: "shape filters",
    hdcrf.relaxed.BilateralPotential: "lattice taps neighbourhood normalization='symmetric' constant=1.0",
    hdcrf.relaxed.projected_gradient: """energy start iterations step_size='auto' leak=0.0
        track=False progress=None backend='auto'""",
    hdcrf.relaxed.graduated_descent: "energy start iterations=50 track=False progress=None backend='auto'",
    hdcrf.relaxed.parallel_mean_field: "energy start iterations track=False progress=None",
    hdcrf.pac.adapting_kernel: """guide kernel_size stride=1 padding=0 dilation=1 kind='gaussian' alpha=0.1
        exponent=0.5 epsilon=0.001 window=None centres=None mask=None normalize=False places=None""",
    hdcrf.pac.AdaptingKernel: "kind='gaussian' alpha=0.1 exponent=0.5 epsilon=0.001 learn=True",
    hdcrf.pac.AdaptingKernel.forward: """self guide kernel_size stride=1 padding=0 dilation=1 window=None
        centres=None mask=None normalize=False places=None""",
    hdcrf.pac.pac_conv2d: "values kernel weight bias=None stride=1 padding=0 dilation=1 groups=1",
    hdcrf.pac.pac_conv3d: "values kernel weight bias=None stride=1 padding=0 dilation=1 groups=1",
    hdcrf.pac.pac_conv_transpose2d: """values kernel weight bias=None stride=1 padding=0 output_padding=0
        groups=1 dilation=1""",
    hdcrf.pac.pac_pool2d: "values kernel stride=None padding=0 dilation=1",
    hdcrf.pac.PacConv2d: """in_channels out_channels kernel_size stride=1 padding=0 dilation=1 groups=1
        bias=True kernel='gaussian' filters='full' normalize=False""",
    hdcrf.pac.PacConv2d.forward: "self values guide=None mask=None kernel=None",
    hdcrf.pac.PacConvTranspose2d: """in_channels out_channels kernel_size stride=1 padding=0
        output_padding=0 groups=1 bias=True dilation=1 kernel='gaussian' filters='full' normalize=False""",
    hdcrf.pac.PacConvTranspose2d.forward: "self values guide=None mask=None kernel=None",
    hdcrf.pac.PacPool2d: """kernel_size stride=None padding=0 dilation=1 kernel='gaussian'
        normalize=False""",
    hdcrf.pac.PacPool2d.forward: "self values guide mask=None",
    hdcrf.PacCRF: """num_labels channels=3 dilations=(16, 64) kernel_size=5 iterations=5 weight=4.0
        sigma_rgb=13.0 compatibility='loose' blur=1 learn=('filters', 'compatibility',
        'bandwidths') output='marginals'""",
    hdcrf.PacCRF.forward: "self logits guide",
    hdcrf.PacCRF.infer: "self logits guide progress=None",
    hdcrf.pac.JointUpsampler: "factor channels=1 guide_channels=3 variant='standard'",
    hdcrf.pac.JointUpsampler.forward: "self values guide",
    hdcrf.pac.joint_bilateral_upsample: """values guide factor radius=2 sigma=0.5 sigma_guide=25.0
        offset=None""",
    hdcrf.pac.swap_in_pac: "model swaps guide_scale=0.0001 kernel='gaussian'",
    lattice.PermutohedralConv: """in_channels out_channels dimension neighbourhood=1 groups=1
        bias=True initial='uniform'""",
    lattice.BilateralConv: """in_channels out_channels dimension neighbourhood=1 groups=1 bias=True
        initial='uniform' normalization='after'""",
    lattice.BilateralConv.forward: "self values features batch=None query=None query_batch=None",
    lattice.neighbourhood_lattice: "features neighbourhood batch=None halo=0 backend='auto'",
    lattice.neighbourhood_offsets: "dimension neighbourhood",
    lattice.PermutohedralLattice: "features batch=None order=1 halo=0 backend='auto'",
    lattice.PermutohedralLattice.filter: "self values normalization='none' query=None query_batch=None",
    voxel.VoxelGrid: "features batch=None order=1 halo=0 interpolation=None backend='auto'",
    voxel.SparseTensor: "coordinates features",
    voxel.SparseTensor.from_voxels: "voxels features",
    voxel.SparseTensor.replace: "self features",
    voxel.SparseTensor.map: "self function",
    voxel.SparseTensor.concatenate: "self other",
    voxel.SparseConv: """in_channels out_channels kernel_size dimension stride=1 shape='cube' dilation=1
        bias=True""",
    voxel.SparseConvTranspose: """in_channels out_channels kernel_size dimension stride shape='cube'
        dilation=1 bias=True""",
    voxel.SparseConvTranspose.forward: "self tensor target",
    voxel.SparseBatchNorm: "channels eps=1e-05 momentum=0.1 affine=True track_running_stats=True",
    voxel.VoxelSet: "coordinates",
    voxel.VoxelSet.coarser: "self stride",
    voxel.VoxelSet.kernel_map: "self kernel_size shape='cube' dilation=1 stride=1",
    voxel.kernel_map: "index offsets coordinates=None stride=1",
}


@pytest.mark.parametrize("package", NAMES, ids=lambda package: package.__name__)
def test_public_names(package):
    assert sorted(package.__all__) == sorted(NAMES[package].split())
    for name in package.__all__:
        assert inspect.getdoc(getattr(package, name)), f"{name} has no docstring"


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_signatures(function):
    written = [
        name if parameter.default is inspect.Parameter.empty else f"{name}={parameter.default!r}"
        for name, parameter in inspect.signature(function).parameters.items()
    ]
    assert " ".join(written) == " ".join(SIGNATURES[function].split())


def test_the_two_lattices_are_swappable():
    methods = ("filter", "splat", "blur", "slice", "diagonal", "degree", "num_vertices", "dimension")
    for method in methods:
        assert hasattr(voxel.VoxelGrid, method)
        assert hasattr(lattice.PermutohedralLattice, method)
