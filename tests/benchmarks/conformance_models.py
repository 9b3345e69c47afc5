"""The architectures of the conformance table: all of torchvision's classifiers, timm and transformers by family."""

from collections.abc import Callable
from typing import Any

__all__ = ["FAMILIES_OF_TRANSFORMERS", "TIMM", "backbone_of", "family_of", "is_good", "names", "source_of"]

# A small one of each of timm's files, two or three where these hold several families.
_OF_TIMM = """
beit_base_patch16_224 beitv2_base_patch16_224 halonet26t lambda_resnet26t botnet26t_256 gernet_s repvgg_a0 regnetz_b16
cait_xxs24_224 coat_tiny coat_lite_tiny convit_tiny convmixer_768_32 convnext_atto convnextv2_atto cpubone_nano
crossvit_tiny_240 cspresnet50 cs3darknet_s cspnext_tiny davit_tiny deit_tiny_distilled_patch16_224
deit3_small_patch16_224 densenet121 dla34 dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0
efficientnet_b0 mixnet_s tinynet_e mnasnet_small fbnetc_100 efficientvim_m1 efficientvit_b0 efficientvit_m0
eva02_tiny_patch14_224 vit_small_patch16_dinov3 fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050
hardcorenas_a hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t inception_next_atto
inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0 mambaout_femto
maxvit_rmlp_pico_rw_256 coatnet_nano_rw_224 poolformer_s12 caformer_s18 mixer_s32_224 gmlp_ti16_224 resmlp_12_224
mobilenetv3_small_050 lcnet_050 mobilevit_xxs mobilevitv2_050 mvitv2_tiny naflexvit_base_patch16_gap nest_tiny
nextvit_small nf_resnet26 nfnet_l0 pit_ti_224 pit_ti_distilled_224 pvt_v2_b0 rdnet_tiny regnety_002 regnetx_002
repghostnet_050 repvit_m0_9 res2net50_14w_8s resnest14d resnet18 seresnext26d_32x4d ecaresnet26t resnetv2_18
rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s1 swiftformer_xs
swin_tiny_patch4_window7_224 swin_s3_tiny_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224
tnt_s_patch16_224 tresnet_m twins_svt_small twins_pcpvt_small vgg11_bn visformer_tiny vit_tiny_patch16_224
vit_small_patch14_reg4_dinov2 flexivit_small vit_tiny_r_s16_p8_224 vit_relpos_small_patch16_224
samvit_base_patch16_224 vitamin_small_224 volo_d1_224 ese_vovnet19b_dw xception xception41 xcit_nano_12_p16_224
"""
TIMM = tuple(_OF_TIMM.split())

_TOKENS: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
_MAPS: dict[str, Any] = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}
# The class of the configuration, and the numbers that make it small.
FAMILIES_OF_TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "beit": ("BeitConfig", {**_TOKENS, "image_size": 64, "patch_size": 8}),
    "bit": ("BitConfig", {**_MAPS, "embedding_size": 8, "num_groups": 4}),
    "clip": ("CLIPVisionConfig", {**_TOKENS, "image_size": 64, "patch_size": 8}),
    "convnext": ("ConvNextConfig", {**_MAPS, "image_size": 64}),
    "convnextv2": ("ConvNextV2Config", {**_MAPS, "image_size": 64}),
    "cvt": ("CvtConfig", {"embed_dim": [8, 16, 24], "depth": [1, 2, 3], "num_heads": [1, 2, 3]}),
    "data2vec-vision": ("Data2VecVisionConfig", {**_TOKENS, "image_size": 64, "patch_size": 8}),
    "deit": ("DeiTConfig", {**_TOKENS, "image_size": 64, "patch_size": 8}),
    "dinov2": ("Dinov2Config", {**_TOKENS, "image_size": 56, "patch_size": 14}),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", {**_TOKENS, "image_size": 56, "patch_size": 14}),
    "dinov3_convnext": ("DINOv3ConvNextConfig", {**_MAPS, "image_size": 64}),
    "dinov3_vit": ("DINOv3ViTConfig", {**_TOKENS, "image_size": 64, "patch_size": 8}),
    "efficientnet": ("EfficientNetConfig", {"width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320}),
    "focalnet": ("FocalNetConfig", {"embed_dim": 8, "depths": [1, 1, 1, 1], "image_size": 64}),
    "hgnet_v2": ("HGNetV2Config", {}),
    "hiera": (
        "HieraConfig",
        {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "image_size": [64, 64]},
    ),
    "levit": ("LevitConfig", {"hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 2], "depths": [1, 1, 1]}),
    "mobilenet_v1": ("MobileNetV1Config", {"depth_multiplier": 0.25}),
    "mobilenet_v2": ("MobileNetV2Config", {"depth_multiplier": 0.35}),
    "mobilevit": ("MobileViTConfig", {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32]}),
    "mobilevitv2": ("MobileViTV2Config", {"width_multiplier": 0.5}),
    "poolformer": ("PoolFormerConfig", {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}),
    "pvt": (
        "PvtConfig",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2]},
    ),
    "pvt_v2": (
        "PvtV2Config",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2]},
    ),
    "regnet": ("RegNetConfig", {**_MAPS, "embedding_size": 8, "groups_width": 4}),
    "resnet": ("ResNetConfig", {**_MAPS, "embedding_size": 8}),
    "segformer": (
        "SegformerConfig",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2]},
    ),
    "siglip": ("SiglipVisionConfig", {**_TOKENS, "image_size": 64, "patch_size": 8}),
    "swiftformer": ("SwiftFormerConfig", {"embed_dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}),
    "swin": (
        "SwinConfig",
        {"embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 2, 2], "image_size": 64, "window_size": 2},
    ),
    "swinv2": ("Swinv2Config", {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "image_size": 64}),
    "vit": ("ViTConfig", {**_TOKENS, "image_size": 64, "patch_size": 8}),
    "vit_mae": ("ViTMAEConfig", {**_TOKENS, "image_size": 64, "patch_size": 8}),
    "vit_msn": ("ViTMSNConfig", {**_TOKENS, "image_size": 64, "patch_size": 8}),
}


def names() -> list[str]:
    """All of them, the small ones first: `NAME`, `timm/NAME`, and `hf:FAMILY` for a small configuration."""
    from lit_transfer.backbones import describe_backbones

    transformers = [f"hf:{family}" for family in FAMILIES_OF_TRANSFORMERS]
    torchvision = [info.name for info in sorted(describe_backbones(), key=lambda info: info.parameters or 0)]
    return [*transformers, *torchvision, *(f"timm/{name}" for name in TIMM)]


def backbone_of(name: str) -> Any:
    """What `create_backbone` takes for a name of the table."""
    if not name.startswith("hf:"):
        return name
    import transformers

    kind, numbers = FAMILIES_OF_TRANSFORMERS[name.removeprefix("hf:")]
    make: Callable[..., Any] = getattr(transformers, kind)
    return make(**numbers)


def family_of(name: str) -> str:
    """The file of timm or of torchvision, or the model type of transformers, that an architecture is from."""
    if name.startswith("hf:"):
        return name.removeprefix("hf:")
    if name.startswith("timm/"):
        import timm

        return str(timm.model_entrypoint(name.removeprefix("timm/")).__module__.rpartition(".")[2])
    import torchvision

    return str(torchvision.models.get_model_builder(name).__module__.rpartition(".")[2])


def source_of(name: str) -> str:
    """`torchvision`, `timm` or `hf`."""
    return "hf" if name.startswith("hf:") else "timm" if name.startswith("timm/") else "torchvision"


def is_good(answer: str) -> bool:
    """Whether an answer is no complaint."""
    return answer.startswith("ok") or answer == "-" or answer.split(",")[0].isdigit()
