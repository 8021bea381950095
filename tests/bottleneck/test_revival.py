"""Codebook revival: which entries move, where they move, when nothing moves, and usage counts over all processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from tok1d.bottleneck.kl import KL
from tok1d.bottleneck.softvq import SoftVQ
from tok1d.bottleneck.vq import VQ
from tok1d.config.registry import build_model_config
from tok1d.tokenizers.smap import SMAP
from tok1d.train.players import _Buffers

SIZE = 12


def quantiser(**options: Any) -> VQ:
    torch.manual_seed(0)
    return VQ(5, 4, size=SIZE, l2=False, revival=True, **options).train()


def features(num: int = 8) -> Tensor:
    return torch.randn(num, 3, 5, generator=torch.Generator().manual_seed(1))


def test_unused_entries_land_on_their_nearest_token_and_used_ones_stay() -> None:
    layer, x = quantiser(), features()
    layer.codebook.data[:6] = layer.proj(x).flatten(0, 1)[:6].detach()  # certainly used
    before, z = layer.codebook.detach().clone(), layer.proj(x).flatten(0, 1).detach()
    usage = torch.zeros(SIZE)
    for _ in range(3):
        ids = layer.quantise(layer.proj(x))[1].flatten()
        distances = torch.cdist(z, before)  # two entries may lie on one token: either is the nearest
        torch.testing.assert_close(distances[torch.arange(len(z)), ids], distances.amin(1), atol=1e-3, rtol=0)
        usage = 0.99 * usage + 0.01 * torch.bincount(ids, minlength=SIZE) / len(z)
        share = torch.exp(-usage * SIZE * 10 / 0.01 - 1e-3)[:, None]
        nearest = z[distances.argmin(0)]
        before = (1 - share) * before + share * nearest
        torch.testing.assert_close(layer.usage, usage)
        torch.testing.assert_close(layer.codebook.detach(), before, atol=1e-5, rtol=1e-4)


def test_a_dead_codebook_comes_to_life() -> None:
    layer, x = quantiser(), features(16)
    layer.codebook.data.normal_().mul_(100)
    layer.codebook.data[0] = 0  # all tokens are nearest to this one
    used = [float(layer(x)[1]["codes_used"]) for _ in range(20)]
    assert used[0] == pytest.approx(1 / SIZE) and used[-1] > 0.4


def test_evaluation_changes_nothing_and_without_revival_there_is_no_usage() -> None:
    layer = quantiser().eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(features())
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert "usage" in before and "usage" not in VQ(5, 4, size=SIZE).state_dict()


def test_gradients_are_those_of_the_entries_before_they_moved() -> None:
    found = []
    for revival in (True, False):
        torch.manual_seed(0)
        layer = VQ(5, 4, size=SIZE, l2=False, entropy=0.1, revival=revival).train()
        entries, terms = layer(features())
        loss = entries.square().sum() + terms["loss_vq"] + terms["loss_commit"] + terms["loss_entropy"]
        loss.backward()
        found.append([loss, layer.codebook.grad, layer.proj.weight.grad])
    torch.testing.assert_close(found[0], found[1])


def test_a_step_that_does_not_count_leaves_usage_and_codebook_as_they_were() -> None:
    layer, good, bad = quantiser(), features(), features()
    buffers = _Buffers(layer)
    layer(good)
    buffers.settle(torch.tensor(False))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    bad[0] = torch.nan
    layer(bad)
    assert not torch.isfinite(layer.codebook).all()
    buffers.settle(torch.tensor(True))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("kind", ["vq", "softvq", "kl"])
def test_autocast_leaves_the_bottleneck_in_float32(kind: str) -> None:
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {
        "vq": VQ(32, 16, size=64, l2=False, entropy=0.1),
        "softvq": SoftVQ(32, 16, size=64, num_codebooks=2),
        "kl": KL(32, 16),
    }
    layer, x, noise = layers[kind], torch.randn(4, 6, 32), [torch.randn(4, 6, 16)] if kind == "kl" else []
    expected, terms = layer(x, *noise)
    codes = layer.encode(x)  # type: ignore[operator]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, others = layer(x, *noise)
        assert torch.equal(layer.encode(x), codes)  # type: ignore[operator]
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert all(torch.equal(others[name], value) for name, value in terms.items())


class Losses(nn.Module):
    """The training pass of a tokenizer as `forward`, for the distributed wrapper."""

    def __init__(self, model: SMAP) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, labels: Tensor, keep: int) -> Tensor:
        terms = self.model.reconstruct((images, labels), 0.0, keep=keep)[2]
        return terms["loss_reconstruction"] + terms["loss_vq"] + terms["loss_commit"]


def smap() -> SMAP:
    net = {"patch": 4, "dim": 16, "depth": 1, "heads": 2}
    torch.manual_seed(0)
    return SMAP(
        build_model_config(
            {
                "name": "smap",
                "image_size": 8,
                "num_tokens": 3,
                "token_dim": 4,
                "num_classes": 5,
                "bottleneck": {"size": 9, "revival": False},
                "encoder": net,
                "decoder": net,
            }
        )
    ).train()


def work(rank: int, world: int) -> dict[str, Any]:
    """Revival over three batches, and a tokenizer where half of the batch keeps all tokens, the other half none."""
    layer, x = quantiser(), features()
    statistics = []
    for _ in range(3):
        _, terms = layer(x.chunk(world)[rank])
        statistics.append(torch.stack([terms["codes_used"], terms["perplexity"], *layer.usage]))
    soft = SoftVQ(5, 4, size=6, num_codebooks=3).train()(x.chunk(world)[rank])[1]
    entropies = {}
    for name, part in (("vq", VQ(5, 4, size=6, entropy=1.0)), ("softvq", SoftVQ(5, 4, size=6, entropy=1.0))):
        entropies[f"{name}_entropy"] = entropy_gradient(part, x, rank, world)
    model: Any = Losses(smap())
    wrapped = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(4)
    for _ in range(2):  # an unused weight is an error at the second step
        parts = [0, 1] if world == 1 else [rank]
        losses = [wrapped(images.chunk(2)[part], labels.chunk(2)[part], [3, 0][part]) for part in parts]
        torch.stack(losses).mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.model.named_parameters()}
    return {
        "statistics": statistics,
        "codebook": layer.codebook.detach(),
        "soft": soft["codes_used"],
        **gradients,
        **entropies,
    }


def entropy_gradient(bottleneck: Any, x: Tensor, rank: int, world: int) -> Tensor:
    """Gradient of the entropy loss with respect to the projection, averaged over the processes."""
    part: Any = bottleneck.train()
    with torch.no_grad():
        for i, parameter in enumerate(part.parameters()):
            parameter.normal_(generator=torch.Generator().manual_seed(i))
    part(x.chunk(world)[rank])[1]["loss_entropy"].backward()
    gradient = part.proj.weight.grad / world
    if world > 1:
        distributed.all_reduce(gradient)
    assert gradient.abs().max() > 1e-6
    return gradient


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path / f"{rank}.pt")],
            env={**environment, "WORLD_SIZE": "2", "RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    one, both = work(0, 1), [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for found in both:
        torch.testing.assert_close(found["statistics"], one["statistics"])
        torch.testing.assert_close(found["codebook"], one["codebook"])
        for name in one.keys() - {"statistics", "codebook", "soft"}:
            torch.testing.assert_close(found[name], one[name], msg=lambda text, name=name: f"{name}: {text}")
    assert all(torch.equal(found["soft"], both[0]["soft"]) for found in both)


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    torch.save(work(distributed.get_rank(), distributed.get_world_size()), sys.argv[1])
    distributed.barrier()  # a process that ends while the other one still sends aborts it
    distributed.destroy_process_group()
