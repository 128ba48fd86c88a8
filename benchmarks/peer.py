"""pydensecrf on one image, and on a folder as its users do: a loop. Nothing here imports PyTorch.

python benchmarks/peer.py IMAGES PREDICTIONS OUT            all of a folder
python benchmarks/peer.py IMAGES PREDICTIONS OUT PART PARTS    every so many-th image, from number PART on
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np


def theirs(image: np.ndarray, probabilities: np.ndarray, iterations: int) -> np.ndarray:
    import pydensecrf.densecrf as densecrf

    height, width, labels = probabilities.shape
    crf = densecrf.DenseCRF2D(width, height, labels)
    unary = -np.log(np.maximum(probabilities, 1e-6)).transpose(2, 0, 1).reshape(labels, -1)
    crf.setUnaryEnergy(np.ascontiguousarray(unary, dtype=np.float32))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=np.ascontiguousarray(image), compat=10)
    marginals = np.array(crf.inference(iterations))
    return marginals.argmax(0).reshape(height, width)


def refine_folder(
    images: str, predictions: str, output: str, colours: bytes, part: int = 0, parts: int = 1
) -> int:
    """Refine a folder, leaving out what cannot be read; return how many images came through."""
    from PIL import Image

    done = 0
    for name in sorted(os.listdir(images))[part::parts]:
        stem = os.path.splitext(name)[0]
        try:
            image = np.array(Image.open(os.path.join(images, name)).convert("RGB"))
            probabilities = np.load(os.path.join(predictions, f"{stem}.npy")).astype(np.float32, copy=False)
            if probabilities.shape[:2] != image.shape[:2]:
                continue
        except (OSError, ValueError):
            continue
        picture = Image.fromarray(theirs(image, probabilities, 10).astype(np.uint8))
        picture.putpalette(colours)
        picture.save(os.path.join(output, f"{stem}.png"))
        done += 1
    return done


if __name__ == "__main__":
    began = time.perf_counter()
    count = refine_folder(*sys.argv[1:4], bytes(range(256)) * 3, *map(int, sys.argv[4:6]))
    print(count, time.perf_counter() - began)
