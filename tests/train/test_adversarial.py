"""LPIPS and a discriminator in a tokenizer's training: which parameters learn, and what is rejected at the start."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tok1d.config.load import load_recipe
from tok1d.config.recipe import Recipe
from tok1d.cost.forecast import forecast, table
from tok1d.errors import ConfigError, WeightsError
from tok1d.losses.adversarial import AdversarialLoss
from tok1d.losses.discriminator import PatchDiscriminator
from tok1d.losses.perceptual import PerceptualConfig, PerceptualLoss
from tok1d.train import adversarial, checkpoint
from tok1d.train.adversarial import build_players, discriminator_optim, init_discriminator, tokenizer_losses
from tok1d.train.loop import fit
from tok1d.train.players import Progress
from tok1d.train.task import Task
from tok1d.zoo import store
from tok1d.zoo.card import Card
from tok1d.zoo.pretrained.discriminator import build_discriminator

SMALL = (
    "data.image_size=16",
    "data.pad=0",
    "model.image_size=16",
    "model.num_tokens=4",
    "model.token_dim=4",
    "model.encoder={patch: 8, dim: 16, depth: 1, heads: 2}",
    "model.decoder={patch: 8, dim: 16, depth: 1, heads: 2}",
    "train.steps=4",
    "train.batch_size=4",
    "train.warmup=0",
    "train.log_every=1",
)
ADVERSARIAL = (
    "adversarial.weight=0.4",
    "adversarial.start=2",
    "adversarial.discriminator={name: patch, width: 4, layers: 1}",
)


def recipe(*overrides: str) -> Recipe:
    return load_recipe("fashion_mnist/maetok_ae", (*SMALL, *overrides))


def images(micro_step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(micro_step)
    return torch.rand(4, 1, 16, 16, generator=generator), torch.zeros(4, dtype=torch.int64)


def model(settings: Recipe) -> Any:
    torch.manual_seed(settings.seed)
    return store.build_model(settings.model)


def train(settings: Recipe, out: Path) -> tuple[Any, Task]:
    net = model(settings)
    task = Task(net, images, players=build_players(settings, net))
    out.mkdir(exist_ok=True)
    fit(settings, task, out, quiet=True)
    return net, task


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(before: dict[str, Tensor], module: nn.Module) -> bool:
    return any(not torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_without_weight_nothing_changes() -> None:
    settings = recipe()
    assert settings.perceptual.weight == settings.adversarial.weight == 0
    assert build_players(settings, model(settings)) == []


def test_the_model_does_not_depend_on_the_discriminator_beside_it(tmp_path: Path) -> None:
    """Up to the step before the start the tokenizer trains bit for bit as without a discriminator."""
    settings = recipe(*ADVERSARIAL, "adversarial.start=5")
    alone, _ = train(recipe(), tmp_path / "alone")
    adversarial_run, task = train(settings, tmp_path / "adversarial")
    assert not moved(state(alone), adversarial_run)
    earlier, _ = train(recipe(*ADVERSARIAL), tmp_path / "earlier")
    assert moved(state(alone), earlier)
    assert [player.name for player in task.players] == ["model", "discriminator"]


def test_the_discriminator_begins_to_learn_at_its_start(tmp_path: Path) -> None:
    for start, learns in ((5, False), (3, True)):  # the rate of the fourth and last step is 0
        settings = recipe(*ADVERSARIAL, f"adversarial.start={start}", "adversarial.optim.weight_decay=0")
        net = model(settings)
        players = build_players(settings, net)
        before = state(players[1].module.discriminator)  # type: ignore[arg-type]
        names = [name for name, _ in players[1].module.discriminator.named_parameters()]  # type: ignore[union-attr, operator]
        out = tmp_path / str(start)
        out.mkdir()
        fit(settings, Task(net, images, players=players), out, quiet=True)
        after = dict(players[1].module.discriminator.named_parameters())  # type: ignore[union-attr, operator]
        assert any(not torch.equal(before[name], after[name]) for name in names) == learns


def test_the_adaptive_weight_compares_with_the_pixels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adaptive weight compares with reconstruction and LPIPS, not with features or the mask."""
    settings = recipe(*ADVERSARIAL, "model.mask={low: 0.5, high: 0.5}", "model.auxiliary=[{target: pixels, depth: 1}]")
    net = model(settings).train()
    received: dict[str, Any] = {}

    class Recorder:
        def generator_terms(self, real: Tensor, fake: Tensor, step: int, last: Tensor, compared: Any) -> Any:
            received.update(step=step, last=last, compared=compared, fake=fake)
            return {"loss_adversarial": fake.mean()}

    perceptual = PerceptualLoss(PerceptualConfig(weight=2.0), lambda a, b: (a - b).abs().mean((1, 2, 3)))
    losses = tokenizer_losses(net, perceptual, Recorder())  # type: ignore[arg-type]
    batch = images(0)
    terms, made = losses(batch, Progress(step=6, steps=10), {})
    assert received["step"] == 7 and received["last"] is net.decoder.last_weight and made["fake"] is received["fake"]
    assert received["compared"].keys() == {"loss_reconstruction", "loss_perceptual"}
    assert terms.keys() == {"loss_reconstruction", "loss_perceptual", "loss_pixels", "loss_adversarial", "mask_ratio"}
    assert torch.equal(terms["loss_perceptual"], 2 * (batch[0] - made["fake"]).abs().mean((1, 2, 3)).mean())


def test_the_discriminators_optimizer_is_the_tokenizers_but_for_what_is_given() -> None:
    train = ("train.lr=1e-3", "train.lr_min=1e-4", "train.clip=2.0", "train.ema=0.9")
    same = discriminator_optim(recipe(*ADVERSARIAL, *train))
    assert (same.lr, same.lr_min, same.clip, same.ema) == (1e-3, 1e-4, 2.0, 0.0)
    own = discriminator_optim(recipe(*ADVERSARIAL, *train, "adversarial.optim={lr: 2e-3, beta1: 0.5, clip: 0.0}"))
    assert (own.lr, own.beta1, own.beta2, own.clip) == (2e-3, 0.5, same.beta2, 0.0)
    assert own.lr_min == pytest.approx(2e-4), "the whole schedule is scaled"
    assert own.steps == same.steps


def saved_start(settings: Recipe, out: Path) -> tuple[str, Task]:
    net, task = train(settings, out)
    store.save_model(net, out / "model", Card())
    return str(out / "model"), task


def test_stage_two_goes_on_with_the_discriminator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, task = saved_start(recipe(*ADVERSARIAL), tmp_path / "one")
    second = recipe(*ADVERSARIAL, f"init_from={folder}", "model.stage=finetune", "model.finetune.ratio=0.0", "seed=9")
    adversarial_loss = build_players(second, model(second))[1].module
    assert isinstance(adversarial_loss, AdversarialLoss)
    assert not moved(state(task.players[1].module), adversarial_loss) and float(adversarial_loss.lecam.mean_real) != 0
    fresh = build_players(second, model(second), resumed=True)[1].module
    assert moved(state(task.players[1].module), fresh), "a resumed run reads its own checkpoint"
    assert not capsys.readouterr().err


def test_without_an_earlier_discriminator_a_new_one_is_announced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = saved_start(recipe(), tmp_path / "one")
    second = recipe(*ADVERSARIAL, f"init_from={folder}")
    build_players(second, model(second))
    assert "a new one is trained" in capsys.readouterr().err


def test_another_discriminator_and_a_broken_checkpoint_are_reported(tmp_path: Path) -> None:
    folder, _ = saved_start(recipe(*ADVERSARIAL), tmp_path / "one")
    other = recipe(*ADVERSARIAL, f"init_from={folder}", "adversarial.discriminator.width=8")
    with pytest.raises(WeightsError, match="weights of another shape") as error:
        build_players(other, model(other))
    assert "\n" not in str(error.value) and "adversarial.discriminator" in str(error.value)
    newest = sorted((tmp_path / "one" / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    adversarial_loss = AdversarialLoss(other.adversarial, PatchDiscriminator(1, 4, 1))
    with pytest.raises(WeightsError, match="cannot read the checkpoint"):
        init_discriminator(adversarial_loss, folder)


def test_a_run_with_a_discriminator_resumes_as_if_unbroken(tmp_path: Path) -> None:
    settings = recipe(*ADVERSARIAL)
    whole, task = train(settings, tmp_path / "whole")
    net = model(settings)
    broken = Task(net, images, players=build_players(settings, net))
    (tmp_path / "broken").mkdir()
    fit(settings, broken, tmp_path / "broken", seconds=0, quiet=True)
    newest = checkpoint.load_latest(tmp_path / "broken" / "checkpoints", torch.device("cpu"))
    assert newest is not None and newest["step"] < settings.train.steps
    resumed, again = train(settings, tmp_path / "broken")
    assert not moved(state(whole), resumed)
    assert not moved(state(task.players[1].module), again.players[1].module)


def test_lpips_without_weights_is_refused_before_the_training() -> None:
    settings = recipe("perceptual.weight=1.0", "perceptual.heads=nowhere.pth")
    with pytest.raises(WeightsError, match="LPIPS: expected its linear heads, got no file nowhere") as error:
        build_players(settings, model(settings))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["perceptual", "adversarial"])
def test_only_deterministic_tokenizers_are_accepted(key: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}.weight: only maetok, .* read it, expected 0 for semanticist"):
        load_recipe("fashion_mnist/semanticist", (f"{key}.weight=0.5",))
    with pytest.raises(ConfigError, match=f"^{key}.wieght: unknown key; did you mean {key}.weight"):
        load_recipe("fashion_mnist/maetok", (f"{key}.wieght=0.5",))


def test_batch_statistics_are_shared_by_processes_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def norms(num: int) -> set[type[nn.Module]]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(adversarial, "processes", lambda: type("State", (), {"num_processes": num}))
        config = recipe(*ADVERSARIAL, "adversarial.discriminator.layers=2").adversarial.discriminator
        network = adversarial._synchronised(build_discriminator(config, 1))
        return {type(part) for part in network.modules() if "Norm" in type(part).__name__}

    assert norms(1) == {nn.BatchNorm2d} and norms(2) == {nn.SyncBatchNorm}


def test_the_dry_run_counts_the_loss_networks() -> None:
    plain, adversarial_run = forecast(recipe()), forecast(recipe(*ADVERSARIAL, "perceptual.weight=1.0"))
    network = PatchDiscriminator(1, 4, 1)
    discriminator_cost, lpips = adversarial_run.loss_networks["discriminator"], adversarial_run.loss_networks["LPIPS"]
    assert discriminator_cost is not None and lpips is not None and not plain.loss_networks
    assert discriminator_cost.trained == sum(p.numel() for p in network.parameters()) and discriminator_cost.frozen == 0
    # VGG16 up to relu5_3, and five linear heads.
    assert (lpips.trained, lpips.frozen) == (0, 14_714_688 + 64 + 128 + 256 + 512 + 512)
    assert adversarial_run.total == plain.total and adversarial_run.trainable == plain.trainable
    assert adversarial_run.state_bytes - plain.state_bytes == 16 * discriminator_cost.trained + 4 * lpips.frozen
    assert adversarial_run.memory() - plain.memory() == discriminator_cost.state_bytes + lpips.state_bytes + 4 * (
        discriminator_cost.bytes_per_image + lpips.bytes_per_image
    )
    assert adversarial_run.step_flops - plain.step_flops == 4 * (
        discriminator_cost.flops_per_image + lpips.flops_per_image
    )
    cells = map(str, table(adversarial_run).columns[2]._cells)
    assert any("discriminator, not part of the model" in cell for cell in cells)


def test_the_dry_run_does_not_guess_an_unknown_backbone() -> None:
    dino = ("adversarial.weight=0.4", "adversarial.discriminator.backbone=vit_base_patch16_224.dino")
    assert forecast(recipe(*dino)).loss_networks == {"discriminator": None}
