"""guided-diffusion's U-Nets as UNet2DModels: the same outputs as deepinv's implementation with the same weights."""

from __future__ import annotations

import functools

import pytest
import torch

from invdiff.diffusion.schedule import Schedule
from invdiff.errors import CheckpointError, UsageError
from invdiff.priors import describe_checkpoint
from invdiff.priors.stored import loading
from invdiff.priors.stored.adm import AdmFile, convert, unet_config
from invdiff.priors.stored.adm_settings import KNOWN, Layout, complete, read_settings

load_prior = functools.partial(loading.load_prior, device="cpu", precision="fp32")

FFHQ = KNOWN["ffhq_10m"]
IMAGENET = KNOWN["imagenet256"]
# Both at an eighth or so of their width: every layer is there, heads are narrower.
SMALL = {"num_channels": 32, "num_head_channels": 16}
CONFIGURATIONS = {
    "ffhq_10m": {**FFHQ, **SMALL},
    "imagenet256": {**IMAGENET, **SMALL},
    "convolutions that resize": {**FFHQ, **SMALL, "resblock_updown": False, "channel_mult": (1, 2), "image_size": 16},
    "no scale and shift": {**FFHQ, **SMALL, "use_scale_shift_norm": False, "channel_mult": (1, 2), "image_size": 16},
    "no learned variance": {**FFHQ, **SMALL, "learn_sigma": False, "channel_mult": (1, 2), "image_size": 16},
    "new attention order": {**FFHQ, **SMALL, "use_new_attention_order": True, "channel_mult": (1, 2), "image_size": 16},
    "one head": {**FFHQ, "num_channels": 32, "num_head_channels": -1, "num_heads": 1, "channel_mult": (1, 2, 3)}
    | {"image_size": 32},
    "one level": {**FFHQ, **SMALL, "channel_mult": (1,), "image_size": 16},
}


def reference(config, in_channels=3):
    """The U-Net of guided-diffusion, of any size, from deepinv's blocks; deepinv's DiffUNet itself comes in two sizes."""
    from deepinv.models import diffunet as blocks
    from torch import nn

    base, mults, repeats = config["num_channels"], config["channel_mult"], config["num_res_blocks"]
    emb, norm = 4 * base, config["use_scale_shift_norm"]
    attended = {config["image_size"] // side for side in config["attention_resolutions"]}
    heads = {"num_heads": config.get("num_heads", 1), "num_head_channels": config["num_head_channels"]}
    heads["use_new_attention_order"] = config.get("use_new_attention_order", False)

    def residual(entering, leaving, **resize):
        return blocks.ResBlock(entering, emb, 0.0, out_channels=leaving, use_scale_shift_norm=norm, **resize)

    def stage(*layers):
        return blocks.TimestepEmbedSequential(*layers)

    network = blocks.DiffUNet.__new__(blocks.DiffUNet)
    nn.Module.__init__(network)
    network.model_channels, network.num_classes, network.dtype = base, None, torch.float32
    network.time_embed = nn.Sequential(nn.Linear(base, emb), nn.SiLU(), nn.Linear(emb, emb))
    down, skips, channels = [stage(nn.Conv2d(in_channels, base * mults[0], 3, padding=1))], [base * mults[0]], base
    for level, mult in enumerate(mults):
        for _ in range(repeats):
            layers = [residual(channels, base * mult)]
            channels = base * mult
            if 2**level in attended:
                layers.append(blocks.AttentionBlock(channels, **heads))
            down.append(stage(*layers))
            skips.append(channels)
        if level < len(mults) - 1:
            resize = config["resblock_updown"]
            layer = residual(channels, channels, down=True) if resize else blocks.Downsample(channels, True)
            down.append(stage(layer))
            skips.append(channels)
    middle = stage(residual(channels, channels), blocks.AttentionBlock(channels, **heads), residual(channels, channels))
    up = []
    for level, mult in reversed(list(enumerate(mults))):
        for repeat in range(repeats + 1):
            layers = [residual(channels + skips.pop(), base * mult)]
            channels = base * mult
            if 2**level in attended:
                layers.append(blocks.AttentionBlock(channels, **heads))
            if level and repeat == repeats:
                resize = config["resblock_updown"]
                layers.append(residual(channels, channels, up=True) if resize else blocks.Upsample(channels, True))
            up.append(stage(*layers))
    network.input_blocks, network.middle_block = nn.ModuleList(down), middle
    network.output_blocks = nn.ModuleList(up)
    outs = in_channels * (2 if config["learn_sigma"] else 1)
    network.out = nn.Sequential(blocks.normalization(channels), nn.SiLU(), nn.Conv2d(channels, outs, 3, padding=1))
    return network.eval().requires_grad_(False)


def randomize(network, seed=0):
    """Every weight drawn, those too that start at zero: a layer that does nothing would hide a wrong mapping."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.named_parameters():
            fan = max(value[0].numel(), 1) if value.ndim > 1 else 16
            value.copy_(torch.randn(value.shape, generator=generator) / fan**0.5)
            if name.endswith(("norm.weight", "layers.0.weight", "out.0.weight")):
                value.add_(1)
    return network


@functools.cache
def pair(name):
    with torch.random.fork_rng(devices=[]):
        network = randomize(reference(CONFIGURATIONS[name]))
    return network, {key: value.clone() for key, value in network.state_dict().items()}


def settings_of(name):
    return {key: value for key, value in CONFIGURATIONS[name].items() if value != -1}


def save(path, state):
    torch.save(state, path)
    return path


class TestOutputs:
    @pytest.mark.parametrize("name", CONFIGURATIONS)
    def test_equal_those_of_deepinv(self, tmp_path, name):
        network, state = pair(name)
        mapped = AdmFile.open(save(tmp_path / "model.pt", state), settings_of(name)).network()
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(2, 3, 32, 64, generator=generator)
        t = torch.tensor([3.0, 712.25])
        with torch.no_grad():
            expected = network.forward_diffusion(x, t)[:, :3]
            output = mapped(x, t).sample
        assert expected.std() > 0.1
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        "wrong",
        [{"use_new_attention_order": True}, {"num_head_channels": 32}, {"num_head_channels": 8}],
        ids=["order of q, k, v", "fewer heads", "more heads"],
    )
    def test_are_others_with_wrong_settings(self, tmp_path, wrong):
        """The twin of the test above: what only the user can know matters, so it must not be guessed."""
        network, state = pair("ffhq_10m")
        settings = {**settings_of("ffhq_10m"), **wrong}
        mapped = AdmFile.open(save(tmp_path / "model.pt", state), settings).network()
        x, t = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([500.0])
        with torch.no_grad():
            difference = (mapped(x, t).sample - network.forward_diffusion(x, t)[:, :3]).abs().max()
        assert difference > 1e-3

    def test_as_a_prior_equal_those_of_deepinv(self, tmp_path):
        """DiffUNet.forward_denoise clamps its answer and rounds t, so it is asked at levels of the schedule."""
        network, state = pair("ffhq_10m")
        for key, table in zip(
            ("sqrt_1m_alphas_cumprod", "sqrt_alphas_cumprod"), network.get_alpha_prod()[-2:], strict=True
        ):
            setattr(network, key, table)
        path = save(tmp_path / "model.pt", state)
        prior = load_prior_with(path, "ffhq_10m")
        assert prior.schedule == Schedule.named("linear")
        x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
        for t in (50, 300):
            sigma = float(prior.schedule.sigmas[t]) / 2
            expected = network.forward_denoise(x, sigma)
            torch.testing.assert_close(prior.denoise(x, sigma).clamp(0, 1), expected, rtol=1e-4, atol=1e-4)


def load_prior_with(path, name):
    """load_prior of a small network, whose head width has to be told."""
    from invdiff.priors.network import NetworkPrior

    checkpoint = AdmFile.open(path, settings_of(name))
    return NetworkPrior(checkpoint.network(), checkpoint.schedule, channels=3, multiple=checkpoint.multiple)


class TestPublishedShapes:
    """The real networks on the meta device: shapes without memory."""

    @pytest.mark.parametrize(("name", "large"), [("ffhq_10m", False), ("imagenet256", True)])
    def test_every_weight_has_its_place(self, name, large):
        from deepinv.models import DiffUNet
        from diffusers import UNet2DModel

        with torch.device("meta"):
            theirs = DiffUNet(large_model=large, pretrained=None)
            ours = reference(KNOWN[name])
            state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("sqrt")}
            layout = Layout.of(state, "model.pt")
            settings = complete(layout, {}, "model.pt")
            mapped = convert(state, layout, settings)
            expected = UNet2DModel.from_config(unet_config(layout, settings)).state_dict()
        # The builder above, which the outputs are compared with, is deepinv's network.
        assert {key: value.shape for key, value in ours.state_dict().items()} == {k: v.shape for k, v in state.items()}
        assert {key: value.shape for key, value in mapped.items()} == {k: v.shape for k, v in expected.items()}
        assert sum(v.numel() for v in state.values()) - sum(v.numel() for v in mapped.values()) == (
            3 * (9 * layout.num_channels + 1)  # the variance
        )
        assert {key: settings[key] for key in KNOWN[name]} == KNOWN[name]

    def test_known_shapes_need_no_settings(self):
        with torch.device("meta"):
            state = reference(FFHQ).state_dict()
        layout = Layout.of(state, "model.pt")
        settings = complete(layout, {}, "model.pt")
        assert settings["num_head_channels"] == 64 and settings["image_size"] == 256
        config = unet_config(layout, settings)
        assert config["down_block_types"][4] == "AttnDownBlock2D" and config["out_channels"] == 3
        assert complete(layout, read_settings("ffhq_10m"), "model.pt") == settings
        with pytest.raises(CheckpointError, match="its weights say num_channels=128, not 256"):
            complete(layout, read_settings("imagenet256"), "model.pt")


class TestLayouts:
    @pytest.mark.parametrize("name", CONFIGURATIONS)
    def test_are_read_from_names_and_shapes(self, name):
        config = CONFIGURATIONS[name]
        told = Layout.of(pair(name)[1], "model.pt").settings(config["image_size"])
        assert told == {key: config[key] for key in told} | {
            "attention_resolutions": tuple(s for s in config["attention_resolutions"] if s in sides(config))
        }


def sides(config):
    return [config["image_size"] >> level for level in range(len(config["channel_mult"]))]


class TestFiles:
    def test_are_read_in_the_forms_they_are_saved_in(self, tmp_path):
        from safetensors.torch import save_file

        network, state = pair("one head")
        tables = {"sqrt_1m_alphas_cumprod": torch.zeros(3), "sqrt_alphas_cumprod": torch.zeros(3)}
        forms = {
            "wrapped.pt": {"step": 3, "ema": state},
            "parallel.pt": {f"module.{key}": value for key, value in state.items()},
            "deepinv.pth": {**state, **tables},
            "half.ckpt": {key: value.half() for key, value in state.items()},
        }
        paths = [save(tmp_path / name, content) for name, content in forms.items()]
        save_file(state, tmp_path / "safe.safetensors")
        x, t = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([9.0])
        expected = network.forward_diffusion(x, t)[:, :3]
        for path in (*paths, tmp_path / "safe.safetensors"):
            output = AdmFile.open(path, "num_heads=1").network()(x, t).sample.detach()
            tolerance = 0.02 if path.name == "half.ckpt" else 1e-5  # half has 11 bits
            torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)

    def test_take_every_way_to_write_settings(self, tmp_path):
        path = save(tmp_path / "model.pt", pair("convolutions that resize")[1])
        for config in (
            ["num_head_channels=16", "image_size=16"],
            {"num_head_channels": 16, "image_size": 16, "channel_mult": [1, 2], "resblock_updown": False},
        ):
            checkpoint = AdmFile.open(path, config)
            assert checkpoint.config["attention_head_dim"] == 16 and checkpoint.config["sample_size"] == 16
        cosine = AdmFile.open(
            path, ["num_head_channels=16", "noise_schedule=cosine", "diffusion_steps=500", "predict_xstart=true"]
        )
        assert cosine.schedule == Schedule.named("cosine", 500) and cosine.prediction == "sample"
        linear = AdmFile.open(path, ["num_head_channels=16", "diffusion_steps=4000"])
        # guided-diffusion's linear betas shrink as the steps become more: beta in [0.0001, 0.02] * 1000 / T.
        assert linear.schedule == Schedule.named("linear", 4000, 1e-4 / 4, 0.02 / 4)
        assert cosine.config["sample_size"] == 16  # 8 x 8 at the lowest of two levels

    def test_one_file_is_all_that_is_needed(self, tmp_path, monkeypatch):
        """As for the published networks: shapes that are known say everything."""
        from invdiff.priors.stored import adm_settings

        known = {"small": settings_of("ffhq_10m")}
        monkeypatch.setattr(adm_settings, "KNOWN", known)
        prior = load_prior(save(tmp_path / "model.pt", pair("ffhq_10m")[1]))
        assert (prior.channels, prior.prediction, prior.multiple, prior.name) == (3, "epsilon", 32, "model")
        facts = describe_checkpoint(tmp_path / "model.pt")
        assert facts["format"] == "guided-diffusion file" and facts["config"]["num_head_channels"] == 16
        assert facts["parameters"] == sum(p.numel() for p in prior.network.parameters())
        assert prior.describe()["sha256"] == facts["sha256"]
        x = torch.rand(2, 3, 19, 33, generator=torch.Generator().manual_seed(3))
        assert prior.denoise(x, 0.1).shape == x.shape


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda s: s.update({"label_emb.weight": torch.zeros(1000, 128)}), "one of 1000 classes"),
            (lambda s: s.pop("time_embed.0.weight"), r"no U-Net of guided-diffusion \(it has no time_embed.0.weight"),
            (lambda s: s.pop("out.2.weight"), "no U-Net of guided-diffusion"),
            (lambda s: s.pop("output_blocks.1.0.in_layers.0.weight"), "missing up_blocks.0.resnets.1.norm1.weight"),
            (lambda s: s.update({"extra.weight": torch.zeros(1)}), "unexpected extra.weight"),
            (
                lambda s: s.update({"input_blocks.9.0.op.weight": torch.zeros(1)}),
                "levels of this network cannot be told",
            ),
            (lambda s: s.update({"time_embed.0.weight": torch.zeros(128, 16)}), "first level has 32 channels"),
            (lambda s: s.update({"out.2.weight": torch.zeros(5, 32, 3, 3)}), "3 channels in and 5 out"),
            (lambda s: s.update({"input_blocks.0.0.weight": torch.zeros(32, 3, 3)}), "no U-Net for images"),
            (lambda s: s["out.2.bias"].fill_(float("inf")), "weight out.2.bias holds NaN or infinity"),
            (lambda s: s.update({"out.2.bias": 3}), "holds no state dict"),
        ],
    )
    def test_other_networks(self, tmp_path, change, says):
        state = {key: value.clone() for key, value in pair("no learned variance")[1].items()}
        change(state)
        with pytest.raises(CheckpointError, match=says) as caught:
            AdmFile.open(save(tmp_path / "model.pt", state), "num_head_channels=16").network()
        assert "model.pt" in str(caught.value) and "\n" not in str(caught.value)

    def test_resizing_without_weights(self, tmp_path):
        """conv_resample=False: average pooling and nearest neighbours, which leave a gap in the numbers of the blocks."""
        state = pair("convolutions that resize")[1]
        state = {
            key: v for key, v in state.items() if ".op." not in key and not key.endswith((".conv.weight", ".conv.bias"))
        }
        assert len(state) == len(pair("convolutions that resize")[1]) - 4
        with pytest.raises(CheckpointError, match="conv_resample=False"):
            AdmFile.open(save(tmp_path / "model.pt", state), "num_head_channels=16")

    def test_the_width_of_heads_is_not_guessed(self, tmp_path):
        path = save(tmp_path / "model.pt", pair("ffhq_10m")[1])
        with pytest.raises(
            CheckpointError, match=r"invdiff prior import .*model.pt -o DIR --config num_head_channels=64"
        ):
            load_prior(path)
        with pytest.raises(CheckpointError, match="heads of one width"):
            AdmFile.open(save(tmp_path / "b.pt", pair("one head")[1]), "num_heads=3")
        assert AdmFile.open(path, "num_heads=4").config["attention_head_dim"] == 32

    @pytest.mark.parametrize(
        ("config", "says"),
        [
            ("ffhq", "unknown guided-diffusion configuration 'ffhq'. Did you mean 'ffhq_10m'"),
            ("num_head_chanels=64", "Did you mean 'num_head_channels'"),
            ("num_heads=four", "num_heads=four: not a value"),
            ("learn_sigma=maybe", "learn_sigma=maybe"),
            ("num_head_channels=-1", "1 or more"),
            ("noise_schedule=quadratic", "unknown noise_schedule"),
            ("num_head_channels=24", "does not divide the 128 channels"),
        ],
    )
    def test_settings_that_do_not_exist(self, tmp_path, config, says):
        with pytest.raises(UsageError, match=says):
            AdmFile.open(save(tmp_path / "model.pt", pair("ffhq_10m")[1]), config)

    def test_a_config_for_something_else(self, tmp_path):
        with pytest.raises(UsageError, match="only a guided-diffusion file takes a config"):
            loading.open_checkpoint("natural", "ffhq_10m")
        for name in ("no.pt", "models/no.pt"):
            with pytest.raises(CheckpointError, match="no such file"):
                load_prior(name)
        (tmp_path / "a.pt").write_bytes(b"hello world, this is text")
        with pytest.raises(CheckpointError, match="not a torch file"):
            load_prior(tmp_path / "a.pt")
