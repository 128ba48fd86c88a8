"""Ten steps of training a network with a CRF head, in two processes that share their gradients."""

from pathlib import Path

import torch
import torch.multiprocessing as processes
from torch.nn.parallel import DistributedDataParallel

from hdcrf import DenseCRF


class Network(torch.nn.Module):
    """A convolution and a head of which everything is learned."""

    def __init__(self):
        super().__init__()
        self.unary = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.crf = DenseCRF(
            4,
            iterations=3,
            compatibility="full",
            output="logits",
            learn=("weights", "bandwidths", "compatibility"),
            smoothness_sigma=1.5,
        )

    def forward(self, image):
        return self.crf(self.unary(image / 255), image)


def network():
    torch.manual_seed(0)
    return Network()


def train(rank, folder):
    """Train on data of this process's own, and save the parameters."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    try:
        model = DistributedDataParallel(network())
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        torch.manual_seed(1 + rank)
        for _ in range(10):
            image, target = torch.rand(2, 3, 12, 14) * 255, torch.randint(4, (2, 12, 14))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(image), target).backward()
            optimizer.step()
        torch.save(model.module.state_dict(), Path(folder) / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def train_in_two_processes(folder):
    """Return the parameters of the first and second process, and what both started from."""
    processes.spawn(train, (str(folder),), nprocs=2)
    return (*(torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)), network().state_dict())
