"""Import and export: folders of every layout come in, clean diffusers folders go out, and all answer alike."""

from __future__ import annotations

import errno
import functools
import json
import shlex
import shutil

import click
import pytest
import torch
from click.testing import CliRunner
from test_adm import CONFIGURATIONS, pair, settings_of
from test_loading import edit, generator, make_unet, save

from invdiff.cli.main import main
from invdiff.cli.prior import prior
from invdiff.diffusion.schedule import Schedule
from invdiff.errors import CheckpointError, UsageError
from invdiff.priors import describe_checkpoint
from invdiff.priors.stored import loading
from invdiff.priors.stored.export import write_folder
from invdiff.priors.stored.loading import open_checkpoint

load_prior = functools.partial(loading.load_prior, device="cpu", precision="fp32")

# config.json as google/ddpm-cifar10-32 and google/ddpm-celebahq-256 (and -cat, -church, -bedroom) have it: written by
# diffusers 0.0.4, with what later versions gained left out. Here with narrower levels.
GOOGLE = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "time_embedding_type": "positional",
}
LEVELS = {
    "ddpm-cifar10-32": ([32, 64, 64, 64], 1, 32),
    "ddpm-celebahq-256": ([32, 32, 32, 32, 64, 64], 4, 256),
}
GOOGLE_SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_small",
}


def google_folder(folder, name):
    """All files in one folder, attention weights under their old names, in a .bin file."""
    from diffusers import UNet2DModel

    widths, attended, side = LEVELS[name]
    down = ["AttnDownBlock2D" if level == attended else "DownBlock2D" for level in range(len(widths))]
    up = [block.replace("Down", "Up") for block in reversed(down)]
    config = {
        **GOOGLE,
        "block_out_channels": widths,
        "down_block_types": down,
        "up_block_types": up,
        "sample_size": side,
    }
    with torch.random.fork_rng(devices=[]):
        unet = UNet2DModel.from_config(config).eval()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for key, value in unet.state_dict().items():
        for now, before in old.items():
            key = key.replace(f".{now}.", f".{before}.")
        state[key] = value
    assert any(".proj_attn." in key for key in state)
    folder.mkdir(parents=True)
    torch.save(state, folder / "diffusion_pytorch_model.bin")
    index = {"_class_name": "DDPMPipeline", "_diffusers_version": "0.0.4"}
    index |= {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    contents = {"config.json": config, "scheduler_config.json": GOOGLE_SCHEDULER, "model_index.json": index}
    for file, content in contents.items():
        (folder / file).write_text(json.dumps(content))
    return folder, unet


def adm_file(path):
    torch.save(pair("ffhq_10m")[1], path)
    return path, settings_of("ffhq_10m")


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def answers(prior, side=32, channels=3):
    return prior.denoise(torch.rand(2, channels, side, side, generator=generator()), 0.1)


class TestGoogleLayout:
    @pytest.mark.parametrize("name", LEVELS)
    def test_is_read_as_diffusers_reads_it(self, tmp_path, name):
        from diffusers import DDPMPipeline

        folder, unet = google_folder(tmp_path / name, name)
        prior = load_prior(folder)
        theirs = DDPMPipeline.from_pretrained(folder).unet
        # In float64: with one pixel left at the lowest level, the group norms magnify float32's rounding.
        x_t = torch.randn(2, 3, 32, 32, generator=generator(), dtype=torch.float64)
        with torch.no_grad():
            read, built, loaded = (
                network.double()(x_t, torch.tensor([3, 700])).sample for network in (prior.network, unet, theirs)
            )
        torch.testing.assert_close(read, built, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(loaded, built, rtol=1e-9, atol=1e-9)
        assert prior.schedule == Schedule.named("linear") and prior.multiple == 2 ** (
            len(unet.config.block_out_channels) - 1
        )
        facts = describe_checkpoint(folder)
        assert facts["attention"] and facts["format"] == "diffusers folder"

    @pytest.mark.parametrize("kind", ["DDPM", "DDIM", "PNDM"])
    def test_every_pipeline_of_the_ddpm_family(self, tmp_path, kind):
        import diffusers

        unet = make_unet()
        scheduler = getattr(diffusers, f"{kind}Scheduler")(
            beta_schedule="scaled_linear", prediction_type="v_prediction"
        )
        pipelines = {"PNDM": "DiffusionPipeline"}
        with torch.random.fork_rng(devices=[]):
            if kind in pipelines:  # diffusers keeps no PNDMPipeline; its scheduler is in many folders
                save(tmp_path, unet)
                scheduler.save_pretrained(tmp_path / "scheduler")
                edit(
                    tmp_path / "model_index.json", scheduler=["diffusers", "PNDMScheduler"], _class_name="PNDMPipeline"
                )
            else:
                getattr(diffusers, f"{kind}Pipeline")(unet=unet, scheduler=scheduler).save_pretrained(tmp_path)
        prior = load_prior(tmp_path)
        assert prior.schedule == Schedule.named("scaled_linear") and prior.prediction == "v_prediction"
        out = write(tmp_path, tmp_path / "out")
        again = load_prior(out)
        assert json.loads((out / "scheduler/scheduler_config.json").read_text())["_class_name"] == "DDPMScheduler"
        assert torch.equal(answers(prior, 8), answers(again, 8))
        assert (again.schedule, again.prediction) == (prior.schedule, prior.prediction)


def write(source, out, config=None, name="tiny", **options):
    return write_folder(open_checkpoint(source, config)[0], out, name=name, **options)


class TestWhatGoesOut:
    @pytest.mark.parametrize("kind", ["google", "guided-diffusion"])
    def test_is_read_alike_by_diffusers_and_deepinv(self, tmp_path, kind):
        from deepinv.models import DiffusersDenoiserWrapper
        from diffusers import DDPMPipeline

        if kind == "google":
            source, config = google_folder(tmp_path / "in", "ddpm-cifar10-32")[0], None
        else:
            source, config = adm_file(tmp_path / "model.pt")
        checkpoint, name = open_checkpoint(source, config)
        prior = loading.network_prior(checkpoint, name, device=torch.device("cpu"))
        out = write(source, tmp_path / "out", config)
        # The convolutions round by where the weights lie in memory.
        torch.testing.assert_close(answers(load_prior(out)), answers(prior), rtol=1e-5, atol=1e-5)
        pipeline = DDPMPipeline.from_pretrained(out)
        pipeline.set_progress_bar_config(disable=True)
        x_t, t = torch.randn(1, 3, 32, 32, generator=generator()), torch.tensor([250])
        with torch.no_grad():
            torch.testing.assert_close(pipeline.unet(x_t, t).sample, prior.network(x_t, t).sample)
        pipeline.unet.register_to_config(sample_size=32)
        images = pipeline(num_inference_steps=2, generator=generator(), output_type="np").images
        assert images.shape == (1, 32, 32, 3) and 0 <= images.min() < images.max() <= 1
        # It rounds t, so it is asked at a level of the schedule; and it clips, so we do.
        denoiser = DiffusersDenoiserWrapper(str(out))
        x = torch.rand(2, 3, 32, 32, generator=generator(1))
        for t in (40, 400):
            sigma = float(prior.schedule.sigmas[t]) / 2
            with torch.no_grad():
                theirs = denoiser(x, sigma)
            torch.testing.assert_close(prior.denoise(x, sigma).clamp(0, 1), theirs, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(("precision", "bits"), [("fp16", 11), ("bf16", 8)])
    def test_in_16_bits_is_as_near_as_they_allow(self, tmp_path, precision, bits):
        save(tmp_path / "in", make_unet())
        out = write(tmp_path / "in", tmp_path / "out", precision=precision)
        full, half = (open_checkpoint(folder)[0].state_dict() for folder in (tmp_path / "in", out))
        assert {value.dtype for value in half.values()} == {{"fp16": torch.float16, "bf16": torch.bfloat16}[precision]}
        for name, value in full.items():
            difference = (half[name].float() - value).abs()
            assert (difference <= value.abs() * 2.0**-bits + 6e-8).all(), name  # half a unit in the last place
        assert any((half[name].float() != value).any() for name, value in full.items())
        again = write(out, tmp_path / "again")
        assert open_checkpoint(again)[0].state_dict()["conv_in.weight"].dtype == half["conv_in.weight"].dtype

    def test_in_shards_is_the_same(self, tmp_path):
        unet = make_unet(block_out_channels=(64, 128), norm_num_groups=8)
        save(tmp_path / "in", unet)
        out = write(tmp_path / "in", tmp_path / "out", shard_mib=1)
        shards = sorted((out / "unet").glob("*.safetensors"))
        largest = 4 * max(p.numel() for p in unet.parameters())  # one tensor is never divided
        assert len(shards) > 2 and all(path.stat().st_size < max(largest, 2**20) + 2**14 for path in shards)
        whole = sum(p.numel() for p in unet.parameters()) * 4
        assert whole <= sum(path.stat().st_size for path in shards) < whole + 2**18
        assert torch.equal(answers(load_prior(out), 8), answers(load_prior(tmp_path / "in"), 8))

    def test_weights_that_16_bits_cannot_hold(self, tmp_path):
        unet = make_unet()
        with torch.no_grad():
            unet.conv_out.bias[0] = 1e5
        save(tmp_path / "in", unet)
        with pytest.raises(CheckpointError, match=r"beyond 65504, the largest number of float16: conv_out.bias; use"):
            write(tmp_path / "in", tmp_path / "out", precision="fp16")
        assert not (tmp_path / "out").exists()
        write(tmp_path / "in", tmp_path / "out", precision="bf16")

    def test_papers_come_along_and_nothing_else(self, tmp_path):
        folder = tmp_path / "in"
        save(folder, make_unet())
        (folder / "README.md").write_text("---\nlicense: mit\n---\n![curve](curve.png) [more](https://a.b/c.png)\n")
        for name in ("curve.png", "other.png", "recipe.json", "log.csv", "LICENSE", "notes.txt"):
            (folder / name).write_text("{}")
        (folder / "training").mkdir()
        (folder / "training/state.pt").write_text("much")
        out = write(folder, tmp_path / "out")
        kept = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
        assert kept == {
            "model_index.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "scheduler/scheduler_config.json",
            "README.md",
            "curve.png",
            "recipe.json",
            "log.csv",
            "LICENSE",
        }
        assert (out / "README.md").read_text() == (folder / "README.md").read_text()

    def test_a_card_is_written_where_there_is_none(self, tmp_path):
        save(tmp_path / "in", make_unet(in_channels=1, out_channels=1), prediction_type="sample")
        card = (write(tmp_path / "in", tmp_path / "out", name="mine") / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: diffusers\n") and "# mine" in card
        assert "grey images" in card and "| prediction | sample |" in card and "widths 8-16, with attention" in card


class TestWhereItGoes:
    @pytest.fixture
    def source(self, tmp_path):
        save(tmp_path / "in", make_unet())
        return tmp_path / "in"

    def test_nothing_of_the_users_is_replaced(self, source, tmp_path):
        (tmp_path / "file").write_text("x")
        (tmp_path / "empty").mkdir()
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine/thesis.tex").write_text("x")
        write(source, tmp_path / "empty")
        with pytest.raises(UsageError, match="is a file"):
            write(source, tmp_path / "file")
        with pytest.raises(UsageError, match=r"empty is not empty; .* --overwrite"):
            write(source, tmp_path / "empty")
        with pytest.raises(UsageError, match=r"not a diffusers folder .*, so it is not replaced"):
            write(source, tmp_path / "mine", overwrite=True)
        assert (tmp_path / "mine/thesis.tex").exists()
        write(source, tmp_path / "empty", overwrite=True, precision="fp16")
        assert describe_checkpoint(tmp_path / "empty")["dtype"] == "float16"
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]

    def test_a_folder_may_be_written_over_itself(self, source, tmp_path):
        before = answers(load_prior(tmp_path / "in"), 8)
        write(source, tmp_path / "in", overwrite=True)
        assert torch.equal(answers(load_prior(tmp_path / "in"), 8), before)

    @pytest.mark.parametrize(
        ("number", "says"), [(errno.ENOSPC, "Free some space"), (errno.EACCES, "a folder you may write to")]
    )
    def test_what_was_there_survives_a_failed_write(self, source, tmp_path, monkeypatch, number, says):
        out = write(source, tmp_path / "out")
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

        def fail(source, target):
            raise OSError(number, "the disk says no")

        monkeypatch.setattr(shutil, "copyfile", fail)
        (tmp_path / "in/README.md").write_text("a card to copy")
        with pytest.raises(CheckpointError, match=rf"cannot write .*out: the disk says no\. .*{says}.* is intact"):
            write(source, out, overwrite=True)
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
        assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


class TestCommands:
    @pytest.mark.parametrize("name", ["import", "export", "verify"])
    def test_the_examples_in_the_help_are_valid(self, name):
        text = invoke("prior", name, "--help").output.partition("Examples:\n")[2]
        examples = [shlex.split(line) for line in text.splitlines() if line.strip()]
        assert len(examples) >= 2
        for program, group, command, *arguments in examples:
            assert (program, group, command) == ("invdiff", "prior", name)
            found = prior.get_command(click.Context(prior), name)
            found.make_context(name, arguments)

    def test_import_of_a_guided_diffusion_file(self, tmp_path):
        path, settings = adm_file(tmp_path / "model.pt")
        config = [f"--config=num_head_channels={settings['num_head_channels']}", "--config=image_size=256"]
        result = invoke("prior", "import", path, "-o", tmp_path / "out")
        assert result.exit_code == 1 and "--config num_head_channels=64" in result.stderr
        result = invoke("prior", "import", path, "-o", tmp_path / "out", *config)
        assert result.exit_code == 0, result.output
        assert f"check it: invdiff prior verify {tmp_path / 'out'}" in result.stdout
        facts = describe_checkpoint(tmp_path / "out")
        provenance = facts["provenance"]
        assert provenance["source"] == str(path) and provenance["format"] == "guided-diffusion file"
        assert provenance["config"]["num_channels"] == 32 and torch.__version__.startswith(
            provenance["versions"]["torch"]
        )
        assert provenance["sha256"] == open_checkpoint(path, settings)[0].sha256()
        network = pair("ffhq_10m")[0]
        x_t, t = torch.randn(1, 3, 32, 32, generator=generator()), torch.tensor([250.0])
        with torch.no_grad():
            expected = network.forward_diffusion(x_t, t)[:, :3]
            imported = load_prior(tmp_path / "out").network(x_t, t).sample
        torch.testing.assert_close(imported, expected, rtol=1e-5, atol=1e-5)
        assert "provenance.source" in invoke("prior", "info", tmp_path / "out").stdout
        assert (
            CONFIGURATIONS["ffhq_10m"]["image_size"]
            == json.loads((tmp_path / "out/unet/config.json").read_text())["sample_size"]
        )

    def test_import_of_a_flat_folder_and_export_of_it(self, tmp_path):
        folder, _ = google_folder(tmp_path / "in", "ddpm-cifar10-32")
        result = invoke("prior", "import", folder, "-o", tmp_path / "a", "--precision", "fp16", "--shard-mib", 1)
        assert result.exit_code == 0 and "float16, 3 channel(s), epsilon, linear schedule" in result.stdout
        result = invoke("prior", "export", tmp_path / "a", "-o", tmp_path / "b", "--precision", "fp32")
        assert result.exit_code == 0, result.output
        assert describe_checkpoint(tmp_path / "b")["provenance"]["source"] == str(folder)
        torch.testing.assert_close(answers(load_prior(tmp_path / "b")), answers(load_prior(tmp_path / "a")))
        torch.testing.assert_close(
            answers(load_prior(tmp_path / "b")), answers(load_prior(folder)), rtol=0.01, atol=0.01
        )

    @pytest.mark.parametrize(
        ("arguments", "code", "says"),
        [
            (
                ("import", "natural", "-o", "x", "--config", "ffhq_10m"),
                2,
                "only a guided-diffusion file takes a config",
            ),
            (("import", "model.pt", "-o", "x"), 1, "model.pt: no such file"),
            (("import", "natural", "-o", "."), 2, "is not empty"),
            (("export", "natural", "-o", "x", "--precision", "fp64"), 2, "'fp64' is not one of"),
            (("export", "natural", "-o", "x", "--shard-mib", "0"), 2, "--shard-mib"),
            (("export", "natral", "-o", "x"), 2, "Did you mean 'natural'"),
            (("export", "natural"), 2, "Missing option '-o'"),
        ],
    )
    def test_bad_input(self, tmp_path, monkeypatch, arguments, code, says):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "something").write_text("x")
        result = invoke("prior", *arguments)
        assert result.exit_code == code and says in result.stderr, result.output
        assert {path.name for path in tmp_path.iterdir()} == {"something"}
