"""Do Gaussian CRFs over a network pay? Mean IoU of the unary network of `learned_heads.py` with such heads.

    python benchmarks/gaussian_heads.py --images DIR --labels DIR --void 11 --networks DIR --jobs 2
    python benchmarks/gaussian_heads.py --images DIR --labels DIR --void 11 --quick

Frames, split, networks and losses are those of `learned_heads.py`; with the same `--networks` folder the
networks are the very same. The frames are those of a video. A head solves its system at a quarter of the
resolution, where a branch of one convolution sees the image, where a pixel is and the network's
probabilities, and its features become pairwise terms; mean field takes colour and place alone.

Training has the three phases of Chandra 2018: first the network; then the branch and the embeddings, so that
pairwise terms tell whether pixels have the same label; then all of it by the labels, with logits of networks
that have not seen the frame and do not change, and after that jointly with the network. As a control, the
same branch without a CRF adds its own logits to the network's, and is trained in the same way.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hdcrf.gaussian import (
    DenseGaussianCRF,
    GaussianCRF,
    GaussianMeanFieldNetwork,
    SparseGaussianCRF,
    VideoGaussianCRF,
    affinity_loss,
    video_in_contexts,
)

try:
    from benchmarks import unary_network
    from benchmarks.head_tables import Outcome, Row, arguments_of, count, mean_iou, run, score, timed
    from benchmarks.street_frames import UNKNOWN, Frames, enlarge, random_frames, recoloured
    from benchmarks.unary_network import (
        NetworkBudget,
        Progress,
        convolution,
        report,
        train_further,
        trained_networks,
    )
except ModuleNotFoundError:  # run as a script
    import unary_network
    from head_tables import Outcome, Row, arguments_of, count, mean_iou, run, score, timed
    from street_frames import UNKNOWN, Frames, enlarge, random_frames, recoloured
    from unary_network import NetworkBudget, Progress, convolution, report, train_further, trained_networks


@dataclass(frozen=True)
class HeadBudget:
    """How long to train heads, and their sizes."""

    affinity_steps: int = 100
    head_steps: int = 120
    joint_steps: int = 48
    frames: int = 4  # of a step
    channels: int = 32
    embedding: int = 32
    window: int = 15


QUICK = HeadBudget(affinity_steps=4, head_steps=6, joint_steps=4, channels=8, embedding=4, window=3)


def dense(labels: int, budget: HeadBudget) -> GaussianCRF:
    return DenseGaussianCRF(labels, budget.channels, embedding=budget.embedding, strength=0.2)


def dense_by_label(labels: int, budget: HeadBudget) -> GaussianCRF:
    return DenseGaussianCRF(labels, budget.channels, embedding=budget.embedding // 4, potts=False)


def video(labels: int, budget: HeadBudget) -> GaussianCRF:
    return VideoGaussianCRF(labels, budget.channels, embedding=budget.embedding, strength=0.2)


def sparse(labels: int, budget: HeadBudget) -> GaussianCRF:
    return SparseGaussianCRF(labels, budget.channels, potts=False)


def mean_field(labels: int, budget: HeadBudget) -> GaussianMeanFieldNetwork:
    """Return five layers of mean field over colours and places, to begin with a bilateral similarity."""
    network = GaussianMeanFieldNetwork(
        labels, COLOUR_AND_PLACE, window=budget.window, num_filters=COLOUR_AND_PLACE
    )
    with torch.no_grad():
        network.filters.copy_(torch.eye(COLOUR_AND_PLACE))
        network.factor.copy_(0.6 * torch.eye(labels))
    return network


CONTROL = "branch without a CRF"
HEADS: dict[str, Callable[[int, HeadBudget], nn.Module] | None] = {
    CONTROL: None,
    "sparse, 4 neighbours": sparse,
    "Gaussian mean field": mean_field,
    "dense, Potts": dense,
    "dense": dense_by_label,
    "video, 2 frames": video,
    "video, 3 frames": video,
}
CONTEXTS = {"video, 2 frames": 2, "video, 3 frames": 3}
COLOUR_AND_PLACE = 5
SIGMA_RGB, SIGMA_XY = (
    16.0,
    2.6,
)  # units of colours and places: grey values, and pixels at a quarter of the size

COMPARISONS = (
    *((name, "unary") for name in HEADS),
    *((f"{name}, jointly", "unary, trained as long") for name in HEADS),
)


class Head(nn.Module):
    """A Gaussian CRF, or its control, over the logits of frames (T, L, H, W).

    Solves at a quarter of the resolution, and adds what the CRF changes there to the logits.
    """

    def __init__(
        self, num_labels: int, crf: nn.Module | None, budget: HeadBudget, context: int | None
    ) -> None:
        super().__init__()
        self.crf = crf
        self.context = context
        self.log_scale = nn.Parameter(torch.zeros(()))  # takes back what confidence is too much
        if isinstance(crf, GaussianMeanFieldNetwork):
            self.branch: nn.Module = nn.Identity()
            return
        self.branch = convolution(COLOUR_AND_PLACE + num_labels, budget.channels)
        if crf is None:
            self.classify = nn.Conv2d(budget.channels, num_labels, 1)
            for parameter in self.classify.parameters():
                nn.init.zeros_(parameter)
        if isinstance(crf, DenseGaussianCRF | VideoGaussianCRF):
            # Of shared terms, within frames and between: they are probabilities, and the loss wants logits.
            self.thresholds = nn.Parameter(torch.ones(2))
            self.log_factors = nn.Parameter(torch.full((2,), 1.5))

    def inputs(self, logits: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (T, L, h, w) and features (T, C, h, w) at a quarter of the resolution."""
        colours = functional.interpolate(
            images / SIGMA_RGB, scale_factor=0.25, mode="bilinear", antialias=True
        )
        height, width = size = colours.shape[-2:]
        unary = functional.interpolate(logits, size, mode="bilinear", antialias=True)
        places = torch.meshgrid(
            torch.arange(height) / SIGMA_XY, torch.arange(width) / SIGMA_XY, indexing="ij"
        )
        features = torch.cat([colours, torch.stack(places).expand(len(logits), -1, -1, -1)], 1)
        if isinstance(self.crf, GaussianMeanFieldNetwork):
            return unary, features / 2**0.5  # the similarity is exp(-d²), without the half
        return unary, self.branch(torch.cat([features / 4 - 2, 2 * unary.softmax(1)], 1))

    def forward(self, logits: Tensor, images: Tensor) -> Tensor:
        logits = logits * self.log_scale.exp()
        unary, features = self.inputs(logits, images)
        if self.crf is None:
            change = self.classify(features)
        elif self.context is None:
            change = self.crf(unary, features) - unary
        else:
            clip, clip_features = (part.transpose(0, 1)[None] for part in (unary, features))
            scores = video_in_contexts(
                self.crf, clip, clip_features, context=self.context, overlap=self.context - 1
            )
            change = scores[0].transpose(0, 1) - unary
        return logits + enlarge(change, logits.shape[-2:])

    def affinity_loss(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the embeddings alone."""
        unary, features = self.inputs(logits, images)
        coarse = functional.interpolate(labels[:, None].float(), unary.shape[-2:], mode="nearest")[
            :, 0
        ].long()
        if isinstance(self.crf, VideoGaussianCRF):
            spatial, temporal = self.crf.embeddings(features.transpose(0, 1)[None])
            within = self.pair_loss(0, spatial[0].movedim(-3, 0), coarse)
            return within + self.pair_loss(1, temporal, coarse[None])
        return self.pair_loss(0, self.crf.embeddings(features), coarse)

    def pair_loss(self, kind: int, embeddings: Tensor, labels: Tensor) -> Tensor:
        if self.crf.potts:
            embeddings = embeddings * self.log_factors[kind].exp()
        return affinity_loss(embeddings, labels, threshold=self.thresholds[kind], ignore_index=UNKNOWN)


def train_head(head: Head, frames: Frames, logits: Tensor, budget: HeadBudget, name: str) -> None:
    """Train a head on logits (N, L, H, W) of networks that have not seen the frame: affinities, then all."""
    video = head.context is not None
    phases = [
        (budget.head_steps, "head", lambda values, images, labels: frames.loss(head(values, images), labels))
    ]
    if isinstance(head.crf, DenseGaussianCRF | VideoGaussianCRF):
        phases.insert(0, (budget.affinity_steps, "affinities", head.affinity_loss))
    for steps, phase, loss in phases:
        optimizer = torch.optim.Adam(head.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps, pct_start=0.2)
        losses = Progress(f"{name}, {phase}", steps)
        for _ in range(steps):
            picks = random_frames(frames, budget.frames, video)
            batch = [logits[picks], recoloured(frames.images[picks]), frames.labels[picks]]
            if torch.rand(()) < 0.5:
                batch = [part.flip(-1) for part in batch]
            losses.step(loss(*batch), optimizer, schedule)
    head.eval()


def measure(frames: Frames, arguments: argparse.Namespace, seed: int) -> Outcome:
    """Train everything for one seed, and score it on the frames after the fit ones."""
    budget = QUICK if arguments.quick else HeadBudget()
    network_budget = unary_network.QUICK if arguments.quick else NetworkBudget()
    name = f"seed {seed}"
    networks = trained_networks(frames, network_budget, seed, name, arguments.networks)
    check = [slice(frames.fit, len(frames))]
    longer = copy.deepcopy(networks.network)
    joint_steps = (budget.joint_steps, budget.frames)
    _, seconds = timed(train_further, longer, None, frames, *joint_steps, f"{name}, network further")
    logits = networks.checked(networks.network, frames)
    rows = {
        "unary": Row(score(None, frames, logits, check), count(networks.network), networks.seconds),
        "unary, trained as long": Row(
            score(None, frames, networks.checked(longer, frames), check), count(longer), seconds
        ),
    }
    for method, build in HEADS.items():
        crf = None if build is None else build(frames.num_labels, budget)
        head = Head(frames.num_labels, crf, budget, CONTEXTS.get(method))
        _, seconds = timed(train_head, head, frames, logits, budget, f"{name}, {method}")
        rows[method] = Row(score(head, frames, logits, check), count(head), seconds)
        joint, joint_head = copy.deepcopy((networks.network, head))
        _, seconds = timed(
            train_further,
            joint,
            joint_head,
            frames,
            *joint_steps,
            f"{name}, {method}, jointly",
            [{"params": joint_head.parameters(), "lr": 5e-4}],
            method in CONTEXTS,
        )
        values = networks.checked(joint, frames)
        rows[f"{method}, jointly"] = Row(
            score(joint_head, frames, values, check), count(joint, joint_head), seconds
        )
    for method, row in rows.items():
        report(f"{name}, {method}: mean IoU {mean_iou(row.iou):.4f}")
    return Outcome({"Gaussian CRFs": rows})


if __name__ == "__main__":
    run(arguments_of(__doc__), measure, COMPARISONS)
