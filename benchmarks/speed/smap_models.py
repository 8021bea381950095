"""SMAP, CARD, LlamaGen and MaskGIT of the benchmark, and alternative implementations of their sampling."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from speed import slow
from speed.common import Inputs, Stepper
from torch import Tensor

from tok1d.diffusion.guidance import combine
from tok1d.diffusion.solver import Randn
from tok1d.errors import ConfigError
from tok1d.generators.card import CARD, CARDConfig
from tok1d.generators.head import HeadConfig
from tok1d.generators.llamagen import LlamaGen, LlamaGenConfig
from tok1d.generators.maskgit import MaskGIT, MaskGITConfig
from tok1d.losses.total import total_loss
from tok1d.nn.attention import causal, rotary
from tok1d.nn.block import swiglu_hidden
from tok1d.tokenizers.bottlenecks import KLConfig
from tok1d.tokenizers.smap import SMAP, SMAPConfig, plain_vit
from tok1d.tokenizers.vit import ViTConfig

# Names in a block of transformers and of tok1d, without queries, keys and values.
BLOCK_NAMES = {
    "self_attn.o_proj": "attn.proj",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
    "input_layernorm": "norm1",
    "post_attention_layernorm": "norm2",
}


@dataclass(frozen=True)
class SMAPSizes:
    """Model sizes and the work of a run."""

    name: str = "small"
    image_size: int = 128
    vit: ViTConfig = field(default_factory=lambda: plain_vit(patch=16, dim=384, depth=12, heads=6))
    num_tokens: int = 128
    token_dim: int = 16
    vocab_size: int = 8192
    dim: int = 384  # of every generator
    depth: int = 6
    heads: int = 6
    head_width: int = 512
    head_depth: int = 3
    head_steps: int = 25  # Euler steps per token
    maskgit_steps: int = 8
    train_batch: int = 2
    batch: int = 2  # sequences sampled at once
    gemm: int = 2048
    min_seconds: float = 0.1


QUICK_SMAP = replace(SMAPSizes(), name="quick", num_tokens=32, train_batch=1, gemm=1024, min_seconds=0.02)


@dataclass(frozen=True)
class SMAPBench(Inputs):
    """Models and inputs on one device, built on first use."""

    sizes: SMAPSizes
    scale: float = 2.0  # guidance scale; the value does not affect the cost

    def tokenizer(self) -> SMAP:
        """A SMAP with a KL bottleneck, for training."""
        sizes = self.sizes
        torch.manual_seed(0)
        config = SMAPConfig(
            image_size=sizes.image_size,
            num_tokens=sizes.num_tokens,
            token_dim=sizes.token_dim,
            bottleneck=KLConfig(),
            encoder=sizes.vit,
            decoder=sizes.vit,
        )
        return self.ready(SMAP(config))

    def _sizes(self) -> dict[str, int]:
        """Common settings of the generators."""
        sizes = self.sizes
        return {"num_tokens": sizes.num_tokens, "dim": sizes.dim, "depth": sizes.depth, "heads": sizes.heads}

    @cached_property
    def card(self) -> CARD:
        """A CARD with class vectors of its own width."""
        sizes = self.sizes
        torch.manual_seed(0)
        head = HeadConfig(
            width=sizes.head_width,
            depth=sizes.head_depth,
            condition="adaln",
            time_scale=1000.0,
            sampler="euler",
            steps=sizes.head_steps,
        )
        config = CARDConfig(token_dim=sizes.token_dim, class_dim=sizes.dim, head=head, **self._sizes())
        return self.ready(CARD(config)).requires_grad_(False)

    @cached_property
    def llamagen(self) -> LlamaGen:
        torch.manual_seed(0)
        config = LlamaGenConfig(vocab_size=self.sizes.vocab_size, **self._sizes())
        return self.ready(LlamaGen(config)).requires_grad_(False)

    @cached_property
    def maskgit(self) -> MaskGIT:
        torch.manual_seed(0)
        config = MaskGITConfig(vocab_size=self.sizes.vocab_size, steps=self.sizes.maskgit_steps, **self._sizes())
        return self.ready(MaskGIT(config)).requires_grad_(False)


class TruncationTrainer:
    """Training steps of a SMAP with numbers of kept tokens spread evenly over 0..N, as in uniform sampling on average.

    Args:
        keep: "iteration" cuts all sequences of a step at the same number of tokens; "sample" masks the tail of each
            sequence at its own number; "all" drops nothing.
        steps: number of steps, each with another number of tokens; every number is used equally often.
    """

    def __init__(self, bench: SMAPBench, keep: Literal["iteration", "sample", "all"], steps: int = 5) -> None:
        self.bench = bench
        self.model = bench.tokenizer().train()
        self.stepper = Stepper(self.model)
        batch, length = bench.sizes.train_batch, bench.sizes.num_tokens
        self.batch = (bench.images(batch), bench.labels(batch))
        counts = [round(length * j / (steps - 1)) for j in range(steps)]
        each = [[counts[(i + j) % steps] for i in range(batch)] for j in range(steps)]
        ways: dict[str, list[int] | list[Tensor]] = {
            "iteration": counts,
            "sample": [torch.tensor(row, device=bench.device) for row in each],
            "all": [length] * steps,
        }
        self.keeps = ways[keep]

    def step(self) -> Tensor:
        """Run all steps; returns the loss before the last one."""
        for keep in self.keeps:
            torch.manual_seed(0)
            with self.bench.autocast():
                loss = total_loss(self.model.reconstruct(self.batch, 0.0, keep=keep)[2])
            loss.backward()
            self.stepper.step()
        return loss.detach()


def card_without_cache(model: CARD, labels: Tensor, randn: Randn, scale: float) -> Tensor:
    """`CARD.sample` without a cache, the whole sequence computed again for every token: raw tokens (B, N, D)."""
    length = model.config.num_tokens
    conditions = slow.trunk(model, labels, length, cache=False, one_batch=True)
    tokens = model.head_positions.new_zeros(len(labels), length, model.config.token_dim)
    table = model.head.table()
    for i in range(length):
        cond, uncond = conditions(tokens, i)
        tokens[:, i] = model.head.sample(cond, randn(tokens[:, i]), randn, uncond=uncond, scale=scale, table=table)
    return model.denormalise(tokens)


def llamagen_without_cache(model: LlamaGen, labels: Tensor, scale: float) -> Tensor:
    """Greedy `LlamaGen.sample` without a cache, the whole sequence computed again for every id: ids (B, N)."""
    ids = labels.new_zeros(len(labels), 0)
    classes = model.label_embed(torch.cat([labels, model.check_cond(None, len(labels))]))[:, None]
    for i in range(1, 1 + model.config.num_tokens):
        x = torch.cat([classes, model.token_embed(ids.repeat(2, 1))], dim=1)
        attend = rotary(model.cos[:i], model.sin[:i], causal)
        for block in model.blocks:
            x = block(x, attend)
        logits = combine(*model.out(model.norm(x[:, -1])).chunk(2), scale)
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    return ids


def transformers_twin(model: LlamaGen) -> Any:
    """The same network as `LlamaForCausalLM` of transformers with the same weights; classes are given as vectors.

    Raises:
        ConfigError: transformers is not installed.
    """
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        raise ConfigError(
            "row llamagen-generate: expected transformers, got no installation of it; pip install 'tok1d[text]', or "
            "select other rows with --only"
        ) from None
    config = model.config
    assert (config.rope, config.rope_base, config.kv_heads) == ("1d", 10000.0, None), "the variant that both implement"
    made = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        intermediate_size=config.hidden or swiglu_hidden(config.dim),
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        max_position_embeddings=1 + config.num_tokens,
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    twin, ours = LlamaForCausalLM(made), model.state_dict()
    names = {"embed_tokens": "token_embed", "norm": "norm"}
    state = {f"model.{there}.weight": ours[f"{here}.weight"] for there, here in names.items()}
    state["lm_head.weight"] = ours["out.weight"]
    for i in range(config.depth):
        there, here = f"model.layers.{i}.", f"blocks.{i}."
        q, k, v = ours[f"{here}attn.qkv.weight"].chunk(3)
        parts = {"q": halves(q, config.heads), "k": halves(k, config.heads), "v": v}
        state |= {f"{there}self_attn.{part}_proj.weight": weight for part, weight in parts.items()}
        state |= {f"{there}{theirs}.weight": ours[f"{here}{name}.weight"] for theirs, name in BLOCK_NAMES.items()}
    twin.load_state_dict(state)
    return twin.eval().requires_grad_(False).to(model.out.weight.device)


def transformers_greedy(twin: Any, model: LlamaGen, labels: Tensor) -> Tensor:
    """Greedy ids (B, N) of `generate` in transformers, from the class vectors of tok1d, unguided."""
    classes = model.label_embed(labels)[:, None]
    return twin.generate(
        inputs_embeds=classes,
        attention_mask=torch.ones(classes.shape[:2], dtype=torch.int64, device=classes.device),
        max_new_tokens=model.config.num_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
    )


def halves(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows (heads * width, dim) of a projection from rotary pairs (2j, 2j + 1) to (j, j + width / 2)."""
    rows = weight.view(heads, -1, 2, weight.shape[1])
    return rows.transpose(1, 2).reshape(weight.shape)
