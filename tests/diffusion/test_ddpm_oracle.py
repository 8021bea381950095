"""Our ancestral sampler against diffusers' scheduler: same network, same noise, step for step."""

import pytest
import torch
from torch import Tensor

from tok1d.diffusion.ddpm import Chain, ancestral
from tok1d.diffusion.solver import randn_from

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("steps", [10, 250])
def test_ancestral_equals_diffusers(steps: int) -> None:
    diffusers = pytest.importorskip("diffusers", reason="the oracle needs diffusers: pip install 'tok1d[diffusers]'")
    scheduler = diffusers.DDPMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        variance_type="learned_range",
        timestep_spacing="linspace",
        clip_sample=False,
    )
    scheduler.set_timesteps(steps)
    chain = Chain.named("linear").respace(steps)
    assert scheduler.timesteps.tolist() == chain.step_map[::-1]

    torch.manual_seed(0)
    weight, start = torch.randn(6, 3) / 2, torch.randn(4, 3, 2)

    def network(x: Tensor, t: Tensor) -> Tensor:
        phase = (t / 100).sin().view(-1, 1, 1)
        return torch.tanh(torch.einsum("oc,bcl->bol", weight, x) + phase)

    states: list[Tensor] = []
    ours = ancestral(network, start, chain, randn_from(torch.Generator().manual_seed(1)), trace=states.append)

    x, source = start, torch.Generator().manual_seed(1)
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(network(x, t.expand(4)), t, x, generator=source).prev_sample
        # diffusers takes 1 - alpha_bar from float32, so its constants carry a relative error of 1e-4 near the data
        torch.testing.assert_close(states[i], x, atol=1e-3 * float(x.abs().max()), rtol=0, msg=f"step {i}, t = {t}")
    torch.testing.assert_close(ours, x, atol=1e-3 * float(x.abs().max()), rtol=0)
    assert ours.std() > 0.1
