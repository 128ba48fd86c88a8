"""Pixel-adaptive convolution: weights that the features of pixels adapt, in layers, networks and CRFs."""

from hdcrf.pac.adapting_kernel import AdaptingKernel, adapting_kernel
from hdcrf.pac.convolution import pac_conv2d, pac_conv3d, pac_conv_transpose2d, pac_pool2d
from hdcrf.pac.crf import PacCRF
from hdcrf.pac.hot_swapping import swap_in_pac
from hdcrf.pac.joint_upsampling import JointUpsampler, joint_bilateral_upsample
from hdcrf.pac.layers import PacConv2d, PacConv3d, PacConvTranspose2d, PacPool2d

__all__ = [
    "AdaptingKernel",
    "JointUpsampler",
    "PacCRF",
    "PacConv2d",
    "PacConv3d",
    "PacConvTranspose2d",
    "PacPool2d",
    "adapting_kernel",
    "joint_bilateral_upsample",
    "pac_conv2d",
    "pac_conv3d",
    "pac_conv_transpose2d",
    "pac_pool2d",
    "swap_in_pac",
]
