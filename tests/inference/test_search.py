"""Searches while sampling: identities with plain sampling, planted answers, and mistakes in one line."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tok1d
from tok1d.cli import app as cli
from tok1d.config.load import load_recipe
from tok1d.config.sampling import SampleSettings
from tok1d.diffusion.guidance import Guidance
from tok1d.diffusion.solver import exponential_from, randn_from
from tok1d.errors import InputError, Tok1dError
from tok1d.evaluate.features import Features, FrozenNetwork
from tok1d.generators.categorical import other_ids
from tok1d.generators.decoding import Sequences
from tok1d.inference.search import repeated
from tok1d.zoo import store

Tiny = Callable[..., str]
HEAD = "head: {width: 16, depth: 1, steps: 2, sampler: sde"
SIZES = "num_tokens: 4, dim: 16, depth: 2, heads: 2"
WORDS = "condition: {kind: text, dim: 5, length: 3, encoder: x}"
MODELS = {
    "epsilon_llamagen": f"{{name: epsilon_llamagen, {SIZES}, token_dim: 4, num_classes: 10, {HEAD}}}}}",
    "class token": (f"{{name: epsilon_llamagen, {SIZES}, token_dim: 4, num_classes: 10, {HEAD}, class_token: true}}}}"),
    "card": (
        f"{{name: card, {SIZES}, token_dim: 4, num_classes: 10, class_source: independent, class_dim: 8, "
        "head: {width: 16, depth: 1, steps: 2}}"
    ),
    "sit": "{name: sit, num_tokens: 4, token_dim: 4, num_classes: 10, dim: 16, heads: 2, depth: 1, steps: 2}",
    "llamagen": f"{{name: llamagen, {SIZES}, vocab_size: 16, num_classes: 10}}",
    "llamagen words": f"{{name: llamagen, {SIZES}, vocab_size: 16, num_classes: 0, {WORDS}}}",
    "maskgit": "{name: maskgit, num_tokens: 4, vocab_size: 16, num_classes: 10, dim: 16, heads: 2, depth: 1, steps: 2}",
}


def filled(config: Any) -> Any:
    torch.manual_seed(0)
    model = store.build_model(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def pair(tiny: Tiny) -> Callable[..., Any]:
    """pair(name): a generator with random weights and a tokenizer of its tokens."""

    def make(name: str, tokenizer: str = "smap") -> Any:
        ids = name.startswith(("llamagen", "maskgit"))
        vq = ["model.bottleneck={name: vq, size: 16}"] if ids else []
        overrides = [f"model={MODELS[name]}", *([] if ids else ["num_tokens=4"])]
        if "condition" in MODELS[name]:
            overrides.append("data.captions=labels")
        generator = filled(load_recipe(tiny("generator", tokenizer="x"), overrides).model)
        generator.partner = (filled(load_recipe(tiny(tokenizer), vq).model),)
        return generator

    return make


def brightness(images: Tensor, labels: Sequence[object]) -> Tensor:
    return images.mean((1, 2, 3))


@pytest.mark.parametrize(
    ("name", "search"),
    [(name, "best-of=1") for name in ("epsilon_llamagen", "card", "sit", "llamagen", "maskgit")]
    + [(name, "beam=1") for name in ("epsilon_llamagen", "class token", "card", "llamagen")],
)
def test_a_search_of_one_is_plain_sampling_bit_for_bit(pair: Any, name: str, search: str) -> None:
    generator, common = pair(name), {"num": 2, "seed": 3, "guidance": 1.5}
    plain = generator.generate([1, 4], **common)
    found = generator.generate([1, 4], search=search, verifier=brightness, **common)
    assert torch.equal(found.tokens, plain.tokens) and torch.equal(found.images, plain.images)
    assert found.scores.tolist() == brightness(plain.images, []).double().tolist()
    assert found.calls["verifier"] == 1 and found.calls["decoder"] == 1


def test_a_beam_of_one_without_randomness_is_greedy(pair: Any) -> None:
    generator = pair("llamagen")
    found = generator.generate([1, 4], num=1, search="beam=1", verifier=brightness, temperature=0.0, guidance=1.0)
    assert torch.equal(found.tokens, generator.sample([1, 4], greedy=True))


def test_the_best_of_several_has_the_largest_score_of_all_candidates(pair: Any) -> None:
    seen: list[Tensor] = []

    def scores(images: Tensor, labels: Sequence[object]) -> Tensor:
        seen.append(brightness(images, labels))
        assert labels == [2, 2, 5, 5]
        return seen[-1]

    found = pair("card").generate([2, 5], num=2, search="best-of=6", verifier=scores)
    candidates = torch.stack(seen)
    assert len(candidates) == 6 and (candidates.std(0) > 0).all()
    assert torch.equal(found.scores, candidates.max(0).values.double())
    assert torch.equal(brightness(found.images, []).double(), found.scores)
    assert found.calls == {"generator": 6 * 4 * 2 * 2, "decoder": 6, "verifier": 6}  # tokens, steps, guidance


@pytest.mark.parametrize("name", ["epsilon_llamagen", "card"])
def test_a_beam_without_pruning_is_the_best_of_as_many(pair: Any, name: str) -> None:
    """Sequences keep their own random numbers; every=K and C=1 compare whole samples only."""
    generator, common = pair(name), {"num": 2, "verifier": brightness, "seed": 1}
    best = generator.generate([2, 5], search="best-of=3", **common)
    beam = generator.generate([2, 5], search="beam=3", search_candidates=1, **common)
    torch.testing.assert_close(beam.tokens, best.tokens, atol=1e-4, rtol=0)
    late = generator.generate([2, 5], search="beam=1", search_candidates=3, search_every=4, **common)
    torch.testing.assert_close(late.tokens, best.tokens, atol=1e-4, rtol=0)


def test_a_wide_beam_of_ids_finds_the_best_of_all_sequences(pair: Any) -> None:
    generator = pair("llamagen")
    (tokenizer,) = generator.partner
    every = torch.cartesian_prod(torch.arange(16), torch.arange(16))
    cond = torch.full((256,), 7)
    scores = brightness(tokenizer.decode(every, cond, keep=2), [])
    found = generator.generate(7, num=1, keep=2, search="beam=16", verifier=brightness, guidance=1.0)
    assert found.tokens.tolist() == [every[scores.argmax()].tolist()]


def test_a_beam_prunes_by_prefixes(pair: Any) -> None:
    """A verifier that prefers the first token of one candidate: all that is kept begins with it."""
    generator, firsts = pair("epsilon_llamagen", "tokenizer"), []
    generator.partner[0].decode = lambda tokens, *args, keep, **options: firsts.append(tokens) or tokens[:, None, :, :]

    def largest_first(images: Tensor, labels: Sequence[object]) -> Tensor:
        return images[:, 0, 0, 0]

    found = generator.generate(3, num=1, search="beam=2", search_candidates=3, verifier=largest_first)
    assert len(firsts[0]) == 6 and [len(each) for each in firsts[1:4]] == [6, 6, 6]
    best = firsts[0][:, 0, 0].topk(2).values
    assert set(firsts[1][:, 0, 0].tolist()) == set(best.tolist())
    assert found.tokens[0, 0, 0] == best[0]


@pytest.mark.parametrize("name", ["epsilon_llamagen", "card", "llamagen"])
def test_a_beam_ends_with_its_sequences(pair: Any, name: str) -> None:
    """All sequences end after one token: two steps are computed, and the best one is that of best-of."""
    generator, common = pair(name), {"num": 2, "verifier": brightness, "seed": 1}
    generator.stop = nn.Linear(16, 1)
    nn.init.constant_(generator.stop.bias, 1000.0)
    best = generator.generate([2, 5], search="best-of=4", **common)
    steps: list[int] = []
    extend = Sequences.extend
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sequences, "extend", lambda self, *copies: steps.append(1) or extend(self, *copies))
        found = generator.generate([2, 5], search="beam=2", **common)
    assert len(steps) == 2 and found.lengths.tolist() == [1] * 4
    if name == "llamagen":  # the ids of a beam are different ones, the first of them that of plain sampling
        plain = brightness(generator.generate([2, 5], num=2, seed=1).images, [])
        assert (found.scores >= plain - 1e-6).all()
    else:
        torch.testing.assert_close(found.images, best.images, atol=1e-4, rtol=0)
    later = generator.normalise(found.tokens) if name == "card" else found.tokens
    assert found.tokens.shape[1] == 4 and not later[:, 1:].any()


def test_copies_of_a_sequence_that_is_over_do_not_compete(pair: Any, monkeypatch: Any) -> None:
    """The best first token ends its sequence; beside its image a beam of two keeps one of another sequence."""
    generator, seen = pair("card"), []
    generator.stop = nn.Linear(16, 1)
    monkeypatch.setattr(generator, "ends", lambda states, noise: torch.arange(len(states)) == 0)

    def first_best(images: Tensor, labels: Sequence[object]) -> Tensor:
        """Falls with the place in the batch, so that the first sequence stays the first."""
        seen.append(images)
        return -torch.arange(len(images)).double()

    generator.generate(3, num=1, search="beam=2", search_candidates=2, verifier=first_best)
    firsts, seconds, thirds, _ = seen
    over = firsts[0]
    assert torch.allclose(seconds[:2], over.expand_as(seconds[:2])), "both copies of the sequence that has ended"
    assert torch.allclose(thirds[:2], over.expand_as(thirds[:2]))
    assert not torch.allclose(thirds[2], over, atol=1e-3), "and one that goes on"


def test_a_search_depends_on_seed_and_sample_alone(pair: Any) -> None:
    generator = pair("card")
    for search in ("best-of=3", "beam=2"):
        common = {"search": search, "verifier": brightness, "num": 2}
        whole = generator.generate([1, 8], seed=4, **common)
        assert torch.equal(whole.tokens, generator.generate([1, 8], seed=4, **common).tokens)
        alone = generator.generate([8], seed=4, batch_size=1, **common)
        torch.testing.assert_close(alone.tokens, whole.tokens[2:], atol=1e-4, rtol=0)
        assert not torch.equal(whole.tokens, generator.generate([1, 8], seed=5, **common).tokens)


@pytest.mark.parametrize("name", ["epsilon_llamagen", "class token", "card", "llamagen", "llamagen words"])
def test_the_cache_follows_copies_and_choices(pair: Any, name: str) -> None:
    """After copying, choosing and dropping, the outputs are those of the whole sequences without a cache."""
    model = pair(name)
    if "words" in name:
        cond = torch.randn(2, 3, 5)
        cond[1, 1:] = 0  # padding
    else:
        cond = torch.tensor([3, 8])
    make = exponential_from if model.kind == "categorical" else randn_from
    noise = make(torch.Generator().manual_seed(0))
    found = Sequences(model, cond, 4, Guidance(2.0), SampleSettings(), noise)
    found.extend(3)
    found.extend()
    found.select(torch.tensor([4, 0, 0, 5]))
    found.extend(2)
    found.select(torch.tensor([7, 0, 3]))
    sources = torch.tensor([1, 1, 0])
    found.decoder.select(found.places)
    outputs, nulls = found.decoder.step(found.buffer[:, 2])
    with torch.no_grad():
        expected = [
            model(found.buffer[:, :3], each)[:, -1]
            for each in (model.check_cond(cond[sources], 3), model.check_cond(None, 3))
        ]
    torch.testing.assert_close(outputs, expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(nulls, expected[1], atol=1e-5, rtol=1e-5)


def test_other_ids_are_samples_without_replacement() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    rows = 20_000
    logits = probabilities.log().expand(rows, -1)
    numbers = torch.empty(rows, 5).exponential_(generator=torch.Generator().manual_seed(0))
    first = (probabilities / numbers).argmax(-1)
    found = other_ids(logits, numbers, first, 5)
    assert torch.equal(found[:, 0], first) and torch.equal(found[:, 4], first)  # only four have a probability
    assert found[:, :4].sort(1).values.eq(torch.arange(4)).all()
    second = torch.bincount(found[first == 0, 1], minlength=5) / (first == 0).sum()
    torch.testing.assert_close(second, torch.tensor([0, 0.6, 0.3, 0.1, 0]), atol=0.02, rtol=0)
    assert other_ids(logits[:1], None, torch.tensor([0]), 3).tolist() == [[0, 1, 2]]
    assert repeated(torch.tensor([[[1, 2], [1, 3], [1, 2]]])).tolist() == [[False, False, True]]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("sit", {"search": "beam=2"}, "a sit makes all tokens at once; use best-of=N"),
        ("maskgit", {"search": "beam=2"}, "a maskgit makes all tokens at once; use best-of=N"),
        ("card", {"search": "best"}, "expected best-of=N or beam=W with a whole number from 1 on, got 'best'"),
        ("card", {"search": "beam=0"}, "--search: expected best-of=N or beam=W"),
        ("card", {"search": "best-of=2", "search_every": 2}, "--search-every: best-of compares whole samples"),
        ("card", {"search": "best-of=2", "search_candidates": 2}, "--search-candidates: best-of compares whole"),
        ("card", {"search_every": 2}, "--search-every: only a search reads it"),
        ("card", {"search": "best-of=2", "verifier": lambda images, labels: [1.0]}, r"finite scores.*shape \(1,\)"),
        ("card", {"search": "best-of=2", "verifier": lambda images, labels: [torch.nan] * len(images)}, "finite"),
        ("card", {"search": "best-of=2", "verifier": ""}, "no classifier is bundled for these images"),
        ("card", {"search": "best-of=2", "verifier": "nowhere:score"}, "no module 'nowhere' given by --import"),
        ("card", {"search": "best-of=2", "verifier": "clip:nowhere"}, "CLIP reads captions or names of classes"),
        ("card", {"search": "best-of=2", "verifier": "fashion-mnist-semanticist"}, "expected a classifier"),
    ],
)
def test_mistakes_are_named(pair: Any, name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        pair(name).generate([1], num=2, **{"verifier": brightness, **settings})
    assert isinstance(caught.value, Tok1dError) and "\n" not in str(caught.value)


def test_beams_need_ordered_tokens_and_streams_do_not_search(pair: Any) -> None:
    with pytest.raises(InputError, match="beam needs a tokenizer of ordered tokens"):
        pair("card", "maetok").generate([1], search="beam=2", verifier=brightness)
    assert pair("card", "maetok").generate([1], num=1, search="best-of=2", verifier=brightness).calls["decoder"] == 2
    with pytest.raises(InputError, match="search: stream shows one sample as it grows"):
        pair("card").stream([1], search="beam=2")


def test_the_classifier_of_the_data_verifies_by_the_name_of_the_class() -> None:
    generator = tok1d.load_pair("fashion-mnist-epsilon-llamagen")[0]
    found = generator.generate(["Bag", "Sneaker"], num=2, search="best-of=2", keep=2)
    classifier = tok1d.load("fashion-mnist-cnn")
    with torch.no_grad():
        logs = classifier(found.images).log_softmax(1)
    torch.testing.assert_close(found.scores.float(), logs[torch.arange(4), torch.tensor([8, 8, 7, 7])])


@pytest.mark.parametrize("classes", [10, 1000])
def test_a_network_without_names_verifies_as_many_classes_by_number(
    pair: Any, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lit(FrozenNetwork):
        """Class i for an image of brightness i / classes."""

        def measure(self, images: Tensor) -> Features:
            means = images.mean((1, 2, 3))
            logits = -(means[:, None] * classes - torch.arange(classes)).abs()
            return Features(logits, logits=logits)

    network = Lit("lit", "0" * 12, device="cpu", dim=classes, num_classes=classes)
    monkeypatch.setattr("tok1d.evaluate.verifiers.open_network", lambda text, **place: network)
    settings = {"num": 1, "search": "best-of=2", "verifier": "timm:lit"}
    if classes == 1000:
        with pytest.raises(InputError, match="has 1000 classes, expected the generator's 10 in their order"):
            pair("card").generate([4], **settings)
        return
    found = pair("card").generate([4], **settings)
    torch.testing.assert_close(found.scores, network(found.images).logits.double().log_softmax(1)[:, 4])


def test_captions_reach_the_verifier() -> None:
    seen: set[object] = set()

    def scores(images: Tensor, labels: Sequence[object]) -> Tensor:
        seen.update(labels)
        return brightness(images, labels)

    tok1d.load_pair("emoji-card")[0].generate(["red apple"], num=1, search="beam=2", verifier=scores, keep=2)
    assert seen == {"red apple"}


def test_the_command_reports_scores_calls_and_a_judge(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "scoring.py").write_text("def dark(images, labels):\n    return -images.mean((1, 2, 3))\n")
    command = ["--import", str(tmp_path / "scoring.py"), "generate", "fashion-mnist-epsilon-llamagen", "--num", "1"]
    command += ["--classes", "Bag", "--keep", "2", "--device", "cpu", "--out"]
    search = ["--search", "best-of=2", "--verifier", "scoring:dark", "--judge", "fashion-mnist-cnn"]
    assert cli.run([*command, str(tmp_path / "found"), *search]) == 0
    out = capsys.readouterr().out
    assert "search best-of=2: score by dark -0." in out
    assert "network calls a sample: generator 200, decoder 8, verifier 2" in out
    assert "judge fashion-mnist-cnn: mean log-probability of the class -" in out and "without search" in out
    for wrong in (
        ["--search", "beam=x"],
        ["--judge", "fashion-mnist-cnn"],
        ["--search", "beam=2", "--verifier", "a:b"],
    ):
        assert cli.run([*command, str(tmp_path / "none"), *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "none").exists()
