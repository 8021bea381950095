"""Trainings of average velocities: they start as their teacher, learn its guided velocity, and resume bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tok1d.config.fields import build_config
from tok1d.config.load import load_recipe
from tok1d.config.sampling import Sampling
from tok1d.diffusion.guidance import Guidance
from tok1d.errors import ConfigError, InputError
from tok1d.generators.card import CARD, CARDConfig
from tok1d.generators.lightningdit import LightningDiT, LightningDiTConfig
from tok1d.generators.sit import SiT, SiTConfig
from tok1d.generators.usit import USiT, USiTConfig
from tok1d.inference.sampling import guidance_of
from tok1d.tokenizers.semanticist import Semanticist
from tok1d.train.loop import fit
from tok1d.train.tasks import build_task
from tok1d.zoo import store
from tok1d.zoo.card import Card

Tiny = Callable[..., str]
SECTION = {"tokenizer": "model.flow.few_step", "generator": "model.head.few_step", "sit": "model.few_step"}
KINDS = list(SECTION)
PLAIN = ["model.statistics=none"]  # tokens as they are


def trained(model: nn.Module) -> nn.Module:
    """The model with weights away from the zeros of its initialisation."""
    source = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=source)
    return model.eval()


def run(settings: Any, out: Path, *, sittings: bool) -> Any:
    """The trained model of a run at once, or with one step a sitting."""
    out.mkdir()
    while True:
        task = build_task(settings)
        if fit(settings, task, out, seconds=0.0 if sittings else None, quiet=True).finished:
            return task.model


def teacher_of(tiny: Tiny, folder: Path, kind: str) -> str:
    """The folder of a model with random weights; for a generator also that of its tokenizer, folder/tokenizer."""
    torch.manual_seed(0)
    if kind != "tokenizer":
        tokenizer = load_recipe(tiny("maetok" if kind == "sit" else "tokenizer")).model
        store.save_model(store.build_model(tokenizer), folder / "tokenizer", Card())
    config = load_recipe(recipe_of(tiny, folder, kind), PLAIN if kind == "sit" else []).model
    store.save_model(trained(store.build_model(config)), folder / "teacher", Card())
    return str(folder / "teacher")


def recipe_of(tiny: Tiny, folder: Path, kind: str) -> str:
    own = {} if kind == "tokenizer" else {"tokenizer": folder / "tokenizer", "cache": folder / "cache"}
    return tiny(kind, **own)


def student(tiny: Tiny, folder: Path, kind: str, *more: str, objective: str = "shortcut") -> Any:
    """The recipe of a student of `teacher_of`."""
    section = SECTION[kind]
    overrides = [f"init_from={folder / 'teacher'}", f"{section}.teacher={folder / 'teacher'}"]
    overrides += [f"{section}.objective={objective}", f"{section}.finest=4"]
    overrides += ["model.stage=finetune"] if kind == "tokenizer" else []
    overrides += [*PLAIN, "model.sampler=euler"] if kind == "sit" else []
    return load_recipe(recipe_of(tiny, folder, kind), [*overrides, *more])


def sampled(model: Any, **options: Any) -> Tensor:
    """What the model makes of fixed tokens, or of noise."""
    if isinstance(model, Semanticist):
        tokens = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(1))
        return model.decode(tokens, keep=3, **options)
    return model.sample(torch.tensor([1, 5]), seed=1, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_starts_as_its_teacher(kind: str, tiny: Tiny, tmp_path: Path, fashion: None) -> None:
    teacher = store.load(teacher_of(tiny, tmp_path, kind))
    model = build_task(student(tiny, tmp_path, kind)).model.eval()
    for steps in (1, 3):
        for sampler in ("euler", "heun"):
            options = {"steps": steps, "sampler": sampler, "guidance": 1.7}
            assert torch.equal(sampled(model, **options), sampled(teacher, **options)), (steps, sampler)


@pytest.mark.parametrize("kind", KINDS)
def test_intervals_count_once_trained(kind: str, tiny: Tiny, tmp_path: Path, fashion: None) -> None:
    teacher_of(tiny, tmp_path, kind)
    model = trained(build_task(student(tiny, tmp_path, kind)).model)
    one, velocity = (sampled(model, steps=1, sampler=sampler) for sampler in ("euler", "heun"))
    assert not torch.allclose(one, velocity), "Heun's method takes the velocity, u at d = 0"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", ["shortcut", "meanflow"])
def test_a_resumed_distillation_equals_an_unbroken_one(
    kind: str, objective: str, tiny: Tiny, tmp_path: Path, fashion: None
) -> None:
    teacher_of(tiny, tmp_path, kind)
    before = (tmp_path / "teacher" / "model.safetensors").read_bytes()
    settings = [
        student(tiny, tmp_path, kind, f"{SECTION[kind]}.guidance=2", f"out={tmp_path / name}", objective=objective)
        for name in ("unbroken", "broken")
    ]
    unbroken = run(settings[0], tmp_path / "unbroken", sittings=False)
    model = run(settings[1], tmp_path / "broken", sittings=True)
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert (tmp_path / "teacher" / "model.safetensors").read_bytes() == before
    original = store.load(tmp_path / "teacher").state_dict()
    taught = model.velocity_teacher.state_dict()
    assert all(torch.equal(value, taught[name]) for name, value in original.items())
    assert not any("teacher" in name for name in model.state_dict())
    moved = {name for name, value in original.items() if not torch.equal(value, model.state_dict()[name])}
    assert moved and not (kind == "tokenizer" and any(name.startswith(("encoder", "bottleneck")) for name in moved))


def test_a_saved_student_is_the_same_without_its_teacher(tiny: Tiny, tmp_path: Path, fashion: None) -> None:
    teacher_of(tiny, tmp_path, "tokenizer")
    settings = student(tiny, tmp_path, "tokenizer")
    task = build_task(settings)
    (tmp_path / "run").mkdir()
    fit(settings, task, tmp_path / "run", quiet=True)
    store.save_model(task.model, tmp_path / "model", Card())
    (tmp_path / "teacher" / "config.json").unlink()
    again = store.load(tmp_path / "model")
    assert torch.equal(sampled(again, steps=2), sampled(task.model, steps=2))
    with pytest.raises(InputError, match="expected the loaded model, got none"):
        again.losses((torch.rand(2, 1, 28, 28),), 0.5)


def test_a_decoder_learns_the_guided_velocity_of_its_teacher(tiny: Tiny, tmp_path: Path, fashion: None) -> None:
    teacher_of(tiny, tmp_path, "tokenizer")
    model: Any = build_task(student(tiny, tmp_path, "tokenizer", "model.flow.few_step.guidance=2.5")).model
    tokens, mask = torch.randn(3, 4, 4), torch.arange(4) < torch.tensor([[0], [2], [4]])
    x, t = torch.randn(3, 1, 28, 28), torch.tensor([0.1, 0.5, 0.9])
    learned = model.learned_velocity(tokens, mask)(x, t, torch.full_like(x, torch.nan))
    with torch.no_grad():
        given, null = (model.velocity_teacher.field(tokens, keep, Guidance())(x, t) for keep in (mask.sum(1), 0))
    torch.testing.assert_close(learned, null + 2.5 * (given - null), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(learned[0], null[0], atol=1e-4, rtol=1e-4)


def test_a_head_learns_the_velocity_guided_as_the_teachers_schedule_says(
    tiny: Tiny, tmp_path: Path, fashion: None
) -> None:
    teacher_of(tiny, tmp_path, "generator")
    recipe = student(tiny, tmp_path, "generator", "model.head.few_step.guidance=3", "model.head.batch_mul=2")
    model: Any = build_task(recipe).model
    teacher, tokens, cond = model.velocity_teacher, torch.randn(2, 3, 4), torch.tensor([1, 4])
    x, t = torch.randn(12, 4), torch.rand(12)
    learned = model.learned_velocity(tokens, cond)(x, t, torch.full_like(x, torch.nan))
    with torch.no_grad():
        given, null = (teacher.hidden(tokens, teacher.check_cond(each, 2)) for each in (cond, None))
        for row in range(12):  # copies of (image, token)
            image, token = row // 3 % 2, row % 3
            scale = 1 + 2 * (token + 1) / 3
            conditions = given[image, token][None], null[image, token][None]
            expected = teacher.head.field(*conditions, scale)(x[row][None], t[row][None])[0]
            torch.testing.assert_close(learned[row], expected)


def test_a_sequence_learns_the_guided_velocity_of_its_teacher(tiny: Tiny, tmp_path: Path, fashion: None) -> None:
    teacher_of(tiny, tmp_path, "sit")
    model: Any = build_task(student(tiny, tmp_path, "sit", "model.few_step.guidance=2")).model
    x, t, labels = torch.randn(2, model.config.num_tokens, 4), torch.tensor([0.2, 0.7]), torch.tensor([3, 10])
    learned = model.learned_velocity(labels)(x, t, torch.full_like(x, torch.nan))
    net = model.velocity_teacher.net
    with torch.no_grad():
        given, null = net(x, t, labels), net(x, t, torch.full_like(labels, 10))
    torch.testing.assert_close(learned, 2 * given - null)


def test_guidance_that_was_learned_is_not_applied_again(tiny: Tiny, tmp_path: Path, fashion: None) -> None:
    teacher_of(tiny, tmp_path, "generator")
    for guidance, default in ((1, 2.0), (3, 1.0)):
        model: Any = build_task(student(tiny, tmp_path, "generator", f"model.head.few_step.guidance={guidance}")).model
        assert guidance_of(model, Sampling()).scale == default
        assert guidance_of(model, Sampling(guidance=1.5)).scale == 1.5


SMALL = {"num_tokens": 4, "token_dim": 3, "num_classes": 2, "dim": 16, "depth": 1, "heads": 2}
FEW = {"sampler": "euler", "few_step": {"objective": "meanflow", "guidance": 2.0}}
MODELS: list[tuple[Any, Any, dict[str, Any]]] = [
    (SiT, SiTConfig, {**SMALL, **FEW}),
    (LightningDiT, LightningDiTConfig, {**SMALL, **FEW, "direction_weight": 0}),
    (USiT, USiTConfig, {**SMALL, **FEW}),
    (CARD, CARDConfig, {**SMALL, "class_dim": 8, "head": {"width": 8, "depth": 1, **FEW}}),
]


@pytest.mark.parametrize(("cls", "config", "options"), MODELS, ids=[cls.__name__ for cls, *_ in MODELS])
@pytest.mark.parametrize("objective", ["shortcut", "meanflow"])
def test_every_flow_trains_its_intervals_and_samples_in_one_call(
    cls: Any, config: Any, options: dict[str, Any], objective: str
) -> None:
    torch.manual_seed(0)
    model = cls(build_config(config, options))
    part = model.head.net if cls is CARD else model.net
    few = model.few_step
    object.__setattr__(few.config, "objective", objective)
    trained(model).train()
    model.losses((torch.randn(8, 4, 3), torch.tensor([0, 1] * 4)), 0.5)["loss"].backward()
    assert all(p.grad is not None and p.grad.any() for p in part.interval_embed.parameters())
    calls: list[int] = []
    for network in model.eval().evaluated_networks(Guidance()):
        network.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    tokens = model.sample(torch.tensor([0, 1]), steps=1)
    assert tokens.shape == (2, 4, 3) and calls == [2] * (4 if cls is CARD else 1)


REFUSED = [
    ("tokenizer", "model.flow.few_step.finest=12", "model.flow.few_step.finest: expected a power of 2, got 12"),
    ("tokenizer", "model.stage=train", "model.stage: expected finetune with flow.few_step.teacher"),
    ("tokenizer", "model.objective=ddpm", "model.objective: expected flow with flow.few_step, got ddpm"),
    ("tokenizer", "model.flow.prediction=noise", "model.flow.prediction: expected data or velocity with few_step"),
    ("generator", "model.head.sampler=sde", "model.head.few_step: expected objective=interpolant and sampler=euler"),
    ("sit", "model.sampler=sde", "model.sampler: expected euler with few_step, got sde"),
    ("sit", "model.direction_weight=1", "model.direction_weight: expected 0.0 with few_step, got 1.0"),
]


@pytest.mark.parametrize(("kind", "override", "message"), REFUSED)
def test_settings_that_have_no_average_velocity_are_refused(
    kind: str, override: str, message: str, tiny: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        student(tiny, tmp_path, kind, override)
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


def test_a_teacher_of_other_tokens_is_refused(tiny: Tiny, tmp_path: Path, fashion: None) -> None:
    teacher_of(tiny, tmp_path, "tokenizer")
    torch.manual_seed(1)
    other = trained(store.build_model(load_recipe(recipe_of(tiny, tmp_path, "tokenizer")).model))
    nn.init.normal_(next(other.encoder.parameters()), std=1.0)  # type: ignore[union-attr]
    store.save_model(other, tmp_path / "other", Card())
    with pytest.raises(ConfigError, match="so it has other tokens; expected the model of init_from"):
        build_task(student(tiny, tmp_path, "tokenizer", f"model.flow.few_step.teacher={tmp_path / 'other'}"))
    with pytest.raises(ConfigError, match="expected num_tokens=5 as in this model, got 4"):
        build_task(student(tiny, tmp_path, "tokenizer", "model.num_tokens=5"))


def test_steps_of_one_need_an_ordinary_differential_equation() -> None:
    for head in ({"sampler": "sde"}, {"objective": "ddpm"}):
        with pytest.raises(ConfigError, match=r"^head.steps: expected at least 2 for"):
            build_config(CARDConfig, {"head": {"steps": 1, **head}})
