"""Networks of timm and transformers, one small one a family, explained (`make zoo`)."""

from __future__ import annotations

import argparse
import re
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn

import bilrp
from tests import zoo

LARGE, TOO_LARGE = 60e6, 250e6  # parameters from which a model runs in float32, or not at all
COARSE = "gemma4_vit_167m"  # in float32 the plain model itself is off by 2e-4, so it has float64

# One small network of each module of timm that builds classifiers.
TIMM = """
beit_base_patch16_224 halonet26t test_byobnet cait_xxs24_224 coat_tiny convit_tiny
convmixer_768_32 test_convnext cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_s cspnext_tiny
davit_tiny deepseek_vit_412m deit_tiny_patch16_224 densenet264d dla34 dpn68 edgenext_small
efficientformer_l1 efficientformerv2_s0 test_efficientnet efficientvim_m1 efficientvit_b0
efficientvit_m0 eva02_tiny_patch14_224 fasternet_s fastvit_s12 focalnet_tiny_lrf gcvit_xxtiny
gemma4_vit_167m ghostnet_050 hardcorenas_a hgnet_tiny hiera_tiny_224 sam2_hiera_tiny
hrnet_w18_small iformer_s inception_next_atto inception_resnet_v2 inception_v3 inception_v4
lcnetv2_small levit_384_s8 lowformer_b0 test_mambaout test_maxvit caformer_s18 gmlp_s16_224
mobilenetv3_small_050 mobilenetv5_300m mobilevit_xxs mvitv2_tiny naflexvit_base_patch16_siglip
nasnetalarge nest_tiny nextvit_small test_nfnet pit_xs_224 pnasnet5large pvt_v2_b0 qwen3_vit_88m
rdnet_tiny regnety_040_sgn repghostnet_050 repvit_m1 res2net50_26w_4s resnest26d test_resnet
resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s050
swiftformer_xs swin_s3_tiny_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224
tnt_s_patch16_224 tresnet_l twins_svt_small vgg11 visformer_tiny test_vit vit_tiny_r_s16_p8_224
test_vit_relpos samvit_base_patch16 vitamin_small_224 volo_d1_224 ese_vovnet19b_slim
legacy_xception xception41 xcit_nano_12_p8_224
""".split()  # noqa: SIM905  (names of one library, to be read)

_LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_TEXT = {"hidden_size": 16, "vocab_size": 50, "max_position_embeddings": 64, **_LAYERS}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1} | {
    "mask_token_id": 3, "sep_token_id": 2,
}  # fmt: skip
_CAUSAL = {**_TEXT, **_IDS, "num_key_value_heads": 1}
_PICTURE = {"hidden_size": 16, "image_size": 32, "patch_size": 8, **_LAYERS}
_SOUND = {"vocab_size": 20, "hidden_size": 16, **_LAYERS} | {
    "conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2],
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
_STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
_WINDOWS = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1]} | {
    "num_heads": [1, 2], "window_size": 4,
}  # fmt: skip


MIXTURES = "Mixtral Qwen2Moe Qwen3Moe Olmoe GptOss GraniteMoe DeepseekV2 Dots1 Llama4Text MiniMax"
_EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "head_dim": 8, "v_head_dim": 8,
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
}  # fmt: skip
_T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
BOTH_WAYS = ("Bart", "MBart", "Pegasus", "M2M100", "Marian", "BlenderbotSmall")  # with a decoder
_BOTH = {
    "vocab_size": 50, "d_model": 16, "encoder_layers": 2, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32, "max_position_embeddings": 64, **_IDS,
}  # fmt: skip


def _each(kinds: str, options: dict) -> dict[str, dict]:
    return dict.fromkeys(kinds.split(), options)


# Kinds of transformers by what they take: options of their configurations.
TRANSFORMERS: dict[str, dict[str, dict]] = {
    "inputs_embeds": {
        **_each(
            """
            Bert Roberta Camembert XLMRoberta Ernie MPNet Deberta DebertaV2 RoFormer
            Nystromformer JinaEmbeddingsV3
            """,
            _TEXT,
        ),
        **_each("Electra Albert", {**_TEXT, "embedding_size": 16}),
        **_each("ModernBert NomicBert", {**_TEXT, **_IDS}),
        "DistilBert": {"vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
        "T5Encoder": _T5,
        "GPT2": {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2},
        **_each(
            """
            Llama Mistral Qwen2 Qwen3 Gemma Gemma2 Gemma3Text Phi Phi3 GPTNeoX GPTBigCode
            StableLm Olmo Olmo2 Olmo3 Cohere Granite SmolLM3 Glm Glm4 Falcon OPT Bloom Mpt
            Starcoder2 Nemotron Persimmon Exaone4 Arcee Lfm2 Doge VaultGemma BitNet Apertus
            Mamba FalconMamba Rwkv Cohere2 Ernie4_5
            """,
            _CAUSAL,
        ),
        **_each("Helium HunYuanDenseV1 SeedOss EuroBert", {**_CAUSAL, "head_dim": 8}),
        **_each(MIXTURES, {**_CAUSAL, **_EXPERTS}),
        "Mamba2": {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 4}
        | {"head_dim": 8, "state_size": 4, "n_groups": 1},
        **_each("MegatronBert Yoso FNet LayoutLM Splinter", _TEXT),
        **_each("Esm RobertaPreLayerNorm Data2VecText ModernBertDecoder", {**_TEXT, **_IDS}),
        "ConvBert": {**_TEXT, "embedding_size": 16, "conv_kernel_size": 3, "head_ratio": 1},
        "SqueezeBert": {**_TEXT, "embedding_size": 16},
        "MobileBert": {**_TEXT, "embedding_size": 16, "intra_bottleneck_size": 16},
        "RemBert": {**_TEXT, "input_embedding_size": 16, "output_embedding_size": 16},
        "BigBird": {**_TEXT, **_IDS, "attention_type": "original_full"},
        "Luke": {**_TEXT, "entity_vocab_size": 10, "entity_emb_size": 16},
        "Longformer": {**_TEXT, **_IDS, "attention_window": 4},
        "Xmod": {**_TEXT, **_IDS, "languages": ["en_XX"], "default_language": "en_XX"},
        "XLNet": {"vocab_size": 50, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32},
        "Funnel": {"vocab_size": 50, "block_sizes": [1, 1], "num_decoder_layers": 1, "d_model": 16}
        | {"n_head": 2, "d_head": 8, "d_inner": 32},
        **_each("MT5Encoder UMT5Encoder LongT5Encoder", _T5),
        **_each(" ".join(BOTH_WAYS), _BOTH),
        "LED": {**_BOTH, "attention_window": 4, "max_encoder_position_embeddings": 64},
        "GPTNeo": {"vocab_size": 50, "hidden_size": 16, "num_layers": 2, "num_heads": 2}
        | {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64}
        | {"window_size": 4, "bos_token_id": 1, "eos_token_id": 2},
        **_each(
            "GPTJ CodeGen",
            {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
        ),
    },
    "pixel_values": {
        **_each(
            """
            ViT DeiT Dinov2 Dinov2WithRegisters DINOv3ViT SiglipVision CLIPVision
            ChineseCLIPVision Beit Data2VecVision ViTMSN BlipVision InternVLVision PixtralVision
            """,
            _PICTURE,
        ),
        **_each("Swin Swinv2", _WINDOWS),
        **_each("ConvNext ConvNextV2", {**_STAGES, "num_stages": 2}),
        "ResNet": {**_STAGES, "embedding_size": 8, "layer_type": "basic"},
        "Bit": {"hidden_sizes": [32, 32], "depths": [1, 1], "embedding_size": 8, "num_groups": 4},
        "Segformer": {**_STAGES, "num_encoder_blocks": 2, "sr_ratios": [2, 1]}
        | {"patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2]}
        | {"mlp_ratios": [2, 2]},
        "FocalNet": {**_STAGES, "image_size": 32, "embed_dim": 8, "focal_levels": [2, 2]}
        | {"focal_windows": [3, 3]},
        "Hiera": {"image_size": [32, 32], "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
        | {"patch_stride": [4, 4], "query_stride": [2, 2], "masked_unit_size": [4, 4]}
        | {"num_query_pool": 1},
        **_each("PvtV2 PoolFormer MobileViTV2 Cvt", {}),
    },
    "input_values": {
        **_each("Wav2Vec2 Hubert WavLM", _SOUND),
        "AST": {"hidden_size": 16, "patch_size": 8, "max_length": 32, "num_mel_bins": 16, **_LAYERS}
        | {"frequency_stride": 8, "time_stride": 8},
    },
    "input_features": {
        "Whisper": {"vocab_size": 50, "num_mel_bins": 8, "d_model": 16, "max_source_positions": 20}
        | {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
        | {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, **_IDS}
        | {"decoder_start_token_id": 1},
    },
    "past_values": {
        "PatchTST": {"num_input_channels": 3, "context_length": 32, "patch_length": 8}
        | {"patch_stride": 8, "d_model": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"ffn_dim": 32},
    },
}  # fmt: skip


class Encoder(nn.Module):
    """The mean of the last states, over places."""

    def __init__(self, inner: nn.Module, key: str) -> None:
        super().__init__()
        self.inner, self.key = inner, key

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(**{self.key: x})
        states = out[0] if isinstance(out, tuple) else out.last_hidden_state
        if self.key == "pixel_values" and states.dim() == 4:
            return states.mean((2, 3))
        return states.flatten(1, -2).mean(1)


def of_transformers(kind: str, key: str) -> tuple[nn.Module, Tensor, dict]:
    """A model, two inputs and how they are owned."""
    import transformers

    transformers.logging.set_verbosity_error()
    config = getattr(transformers, f"{kind.replace('T5Encoder', 'T5')}Config")
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(config(**TRANSFORMERS[key][kind]))
    inner = model.encoder if kind in (*BOTH_WAYS, "LED", "Whisper") else model
    side = 64 if not TRANSFORMERS[key][kind] else 32
    shape, options = {
        "inputs_embeds": ((6, 16), {}),
        "pixel_values": ((3, side, side), {"groups": zoo.quadrants(side)}),
        "input_values": ((32, 16), {}) if kind == "AST" else ((200,), {"groups": 50}),
        "input_features": ((8, 40), {"groups": 40}),
        "past_values": ((32, 3), {}),
    }[key]
    generator = torch.Generator().manual_seed(1)
    # The library multiplies the rows of experts in no format finer than float32.
    form = torch.float32 if kind in MIXTURES.split() else torch.float64
    pair = torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(form)
    return randomised(Encoder(inner, key).to(form).eval(), pair), pair, options


def of_timm(name: str) -> tuple[nn.Module, Tensor, dict]:
    """A model, two images of the smallest side that it takes of 64, 128 and its own, quarters."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    if sum(p.numel() for p in model.parameters()) > TOO_LARGE:
        return model, torch.zeros(2, 3, 0, 0), {}
    own = model.default_cfg["input_size"][-1]
    side = next((s for s in (64, 128) if runs(model, s)), own)
    count = sum(p.numel() for p in model.parameters())
    kind = torch.float32 if count > LARGE and name != COARSE else torch.float64
    images = torch.rand(8, 3, side, side, generator=torch.Generator().manual_seed(1)).to(kind)
    return zoo.randomise(model.to(kind), images), images[:2], {"groups": zoo.quadrants(side)}


@torch.no_grad()
def runs(model: nn.Module, side: int) -> bool:
    try:
        model(torch.zeros(1, 3, side, side))
    except Exception:  # whatever a library raises for a side that does not fit
        return False
    return True


@torch.no_grad()
def randomised(model: nn.Module, pair: Tensor) -> nn.Module:
    """All numbers moved a little: what starts as 0 or 1 is neither."""
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p += 0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
    return model


@torch.no_grad()
def measured(model: nn.Module, pair: Tensor, options: dict) -> dict[str, float]:
    """Explain two inputs, and compare with the model itself."""
    plain = [model(x[None].clone()).flatten().double() for x in pair]
    y = float(plain[0] @ plain[1])
    size = float(plain[0].abs() @ plain[1].abs())
    start = time.process_time()
    factors = bilrp.factor(model, list(pair), **options)
    e = factors[0].explain(factors[1])
    seconds = time.process_time() - start
    error, cancelled = zoo.ledger(factors, y)
    return {
        "y": abs(e.similarity - y) / size,
        "ledger": error,
        "input": float(e.ledger[0, 0]) / y,
        "size": cancelled,
        "seconds": seconds,
    }


HALF = " with halves in "  # before the modules whose products are shared evenly
HEAD = ("network", "takes", "format", "error of y", "error of ledger", "input, %", "size",
        "seconds")  # fmt: skip


def row(name: str, built: tuple[nn.Module, Tensor, dict]) -> list[str]:
    """One row of the table."""
    model, pair, options = built
    kind = str(pair.dtype).removeprefix("torch.")
    start = [name, " x ".join(map(str, pair.shape[1:])), kind]
    if not pair.numel():
        count = sum(p.numel() for p in model.parameters())
        return [name, "", "", f"not run: {count / 1e6:.0f} million parameters", *[""] * 4]
    halves: dict[type, bilrp.Rule] = {}
    while True:
        rules = {**halves, "*": bilrp.default_rules(model)} if halves else None
        try:
            found = measured(model, pair, {**options, "rules": rules})
            break
        except (NotImplementedError, ValueError) as error:
            kind = module_of(error, model)
            if kind is None or kind in halves:
                return [*start, f"refused: {str(error).split(': ')[0]}", *[""] * 4]
            halves[kind] = bilrp.AttnLRP()
    start[0] += HALF.join(["", *(kind.__name__ for kind in halves)])
    row = [*start, *(f"{found[k]:.0e}" for k in ("y", "ledger"))]
    return [*row, f"{100 * found['input']:.1f}", *(f"{found[k]:.3g}" for k in ("size", "seconds"))]


def module_of(error: Exception, model: nn.Module) -> type | None:
    """The type of the module in which two signals are multiplied, if that is why it is refused."""
    found = re.search(r"called at \S+ in [^(]*\((\w+)", str(error))
    if not found or "who owns" not in str(error).lower():
        return None
    return next((type(m) for m in model.modules() if type(m).__name__ == found[1]), None)


def every() -> Iterator[tuple[str, str, tuple]]:
    """Library, name and what builds the network."""
    for key, kinds in TRANSFORMERS.items():
        for kind in kinds:
            yield "transformers", kind, (of_transformers, kind, key)
    for name in TIMM:
        yield "timm", name, (of_timm, name)


def one(item: tuple[str, str, tuple]) -> tuple[str, list[str]]:
    """Library and row of a network, in a process of its own."""
    library, name, (build, *args) = item
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = row(name, build(*args))
    print(library, *found, file=sys.stderr, flush=True)
    return library, found


def page(rows: dict[str, list[list[str]]]) -> str:
    """Heading and both tables."""
    parts = [zoo.heading_of_machine("python -m tests.zoo_libraries")]
    for library, found in rows.items():
        not_so = [r for r in found if r[3].startswith(("refused", "not run"))]
        halved = [r[0].split(HALF) for r in found if HALF in r[0]]
        count = len(found) - len(not_so) - len(halved)
        told = f"{library} {version(library)}, {count} of {len(found)} explained as they are"
        parts += [f"{told}, {len(halved)} more with a rule (\\*):"]
        short = [[cell.split(": ")[0] for cell in r] for r in found]  # why stands below
        parts += [zoo.table(HEAD, [[re.sub(f"{HALF}.*", " \\\\*", r[0]), *r[1:]] for r in short])]
        parts += [f"\\* {name}: half each in {', '.join(kinds)}." for name, *kinds in halved]
        whole = (f"{r[0]}, {r[3]}." for r in not_so)
        parts += [re.sub(r", named '[^']*'", "", line) for line in whole]  # too long for a phone
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    rows: dict[str, list[list[str]]] = {}
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        for library, found in pool.map(one, every()):
            rows.setdefault(library, []).append(found)
    options.output.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
