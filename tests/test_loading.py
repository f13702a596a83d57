"""Priors from disk: what is read equals what diffusers reads, what is broken is named; and the bridge to deepinv."""

from __future__ import annotations

import builtins
import copy
import functools
import json
import os
import shutil
import sys

import pytest
import torch

from invdiff.diffusion.schedule import Schedule
from invdiff.errors import CheckpointError, InvdiffError, UsageError
from invdiff.machine.device import memory_format
from invdiff.priors import DeepinvPrior, GaussianPrior, Prior, describe_checkpoint, shipped
from invdiff.priors.stored import loading
from invdiff.priors.stored.environment import explain_import_failure
from invdiff.priors.stored.tensor_files import load_tensors

# Exact comparisons need float32; the default "auto" is bfloat16 where the processor has it.
load_prior = functools.partial(loading.load_prior, device="cpu", precision="fp32")

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_unet(**options):
    from diffusers import UNet2DModel

    settings = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    with torch.random.fork_rng(devices=[]):
        return UNet2DModel(**{**settings, **options}).eval()


def save(folder, unet=None, safe=True, **scheduler_options):
    from diffusers import DDPMPipeline, DDPMScheduler

    pipeline = DDPMPipeline(unet=unet or make_unet(), scheduler=DDPMScheduler(**scheduler_options))
    pipeline.save_pretrained(folder, safe_serialization=safe)
    return pipeline


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """(pipeline, folder as diffusers saves it)."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    return save(folder), folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy to damage."""
    return shutil.copytree(original[1], tmp_path / "tiny")


def edit(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "DELETE"}))


def assert_same_network(prior, unet, tolerance=0.0):
    x_t, t = torch.randn(2, unet.config.in_channels, 8, 8, generator=generator()), torch.tensor([3, 700])
    unet = copy.deepcopy(unet).to(
        memory_format=memory_format(torch.device("cpu"))
    )  # a prior's, which decides last bits
    with torch.no_grad():
        expected = unet(x_t, t).sample
        torch.testing.assert_close(prior.network(x_t, t).sample, expected, rtol=tolerance, atol=tolerance)


class TestDiffusersFolder:
    def test_gives_the_network_that_diffusers_saved(self, original):
        pipeline, folder = original
        prior = load_prior(folder)
        assert_same_network(prior, pipeline.unet)
        assert prior.schedule == Schedule.named("linear")
        assert (prior.channels, prior.prediction, prior.multiple, prior.name) == (3, "epsilon", 2, "tiny")
        assert prior.describe()["path"] == str(folder) and len(prior.describe()["sha256"]) == 64

    def test_denoises_as_the_scheduler_of_diffusers_predicts_x_0(self, original):
        pipeline, folder = original
        scheduler = pipeline.scheduler
        scheduler.config.clip_sample = False
        t = 400
        x_t = torch.randn(1, 3, 8, 8, generator=generator())
        with torch.no_grad():
            epsilon = pipeline.unet(x_t, t).sample
            abar = scheduler.alphas_cumprod[t].double()
            expected = ((x_t - (1 - abar).sqrt() * epsilon) / abar.sqrt() + 1) / 2
            sigma = float(((1 - abar) / abar).sqrt()) / 2
            # x = x_0 + sigma n in [0, 1] for the same x_t in [-1, 1]
            clean = load_prior(str(folder)).denoise((x_t / abar.sqrt() + 1).float() / 2, sigma)
        torch.testing.assert_close(clean, expected.float(), rtol=1e-4, atol=1e-4)

    def test_leaves_the_global_generator_alone(self, original):
        before = torch.get_rng_state()
        load_prior(original[1])
        assert torch.equal(before, torch.get_rng_state())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_widens_weights_of_16_bits(self, tmp_path, dtype):
        unet = make_unet().to(dtype)
        save(tmp_path, unet)
        prior = load_prior(tmp_path)
        assert {parameter.dtype for parameter in prior.network.parameters()} == {torch.float32}
        assert_same_network(prior, unet.float())
        assert describe_checkpoint(tmp_path)["dtype"] == str(dtype).removeprefix("torch.")

    def test_reads_torch_files_shards_and_half_precision_variants(self, tmp_path):
        unet = make_unet()
        save(tmp_path / "bin", unet, safe=False)
        assert_same_network(load_prior(tmp_path / "bin"), unet)
        save(tmp_path / "shards", unet)
        unet.save_pretrained(tmp_path / "shards/unet", max_shard_size="20KB")
        (tmp_path / "shards" / WEIGHTS).unlink(missing_ok=True)
        assert_same_network(load_prior(tmp_path / "shards"), unet)
        removed = sorted((tmp_path / "shards/unet").glob("*-of-*"))[0]
        removed.unlink()
        with pytest.raises(CheckpointError, match=f"missing unet/{removed.name}"):
            load_prior(tmp_path / "shards")
        save(tmp_path / "variant", unet)
        source = tmp_path / "variant" / WEIGHTS
        source.rename(source.with_name("diffusion_pytorch_model.fp16.safetensors"))
        assert_same_network(load_prior(tmp_path / "variant"), unet)

    def test_reads_flat_layouts(self, original, tmp_path):
        pipeline, folder = original
        assert_same_network(load_prior(folder / "unet"), pipeline.unet)
        flat = shutil.copytree(folder / "unet", tmp_path / "flat")
        with pytest.raises(CheckpointError, match=r"missing scheduler_config\.json"):
            load_prior(flat)
        shutil.copy(folder / "scheduler/scheduler_config.json", flat)
        assert_same_network(load_prior(flat), pipeline.unet)

    def test_reads_attention_weights_under_their_old_names(self, folder, original):
        from safetensors.torch import load_file, save_file

        new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        state = load_file(folder / WEIGHTS)
        for name in list(state):
            for now, before in new.items():
                if f".{now}." in name:
                    state[name.replace(f".{now}.", f".{before}.")] = state.pop(name)
                    break
        save_file(state, folder / WEIGHTS)
        assert_same_network(load_prior(folder), original[0].unet)

    @pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
    def test_takes_prediction_schedule_and_channels_from_the_files(self, tmp_path, prediction):
        unet = make_unet(in_channels=1, out_channels=2)
        save(tmp_path, unet, prediction_type=prediction, beta_schedule="scaled_linear", num_train_timesteps=500)
        prior = load_prior(tmp_path)
        assert (prior.channels, prior.prediction) == (1, prediction)
        assert prior.schedule == Schedule.named("scaled_linear", 500)
        assert prior.denoise(torch.rand(2, 1, 5, 7), 0.1).shape == (2, 1, 5, 7)

    def test_computes_in_the_precision_that_was_asked_for(self, original):
        x = torch.rand(1, 3, 8, 8, generator=generator())
        full, half = (load_prior(original[1], precision=p) for p in ("fp32", torch.bfloat16))
        assert half.precision == torch.bfloat16 and half.denoise(x, 0.1).dtype == torch.float32
        torch.testing.assert_close(half.denoise(x, 0.1), full.denoise(x, 0.1), rtol=0.05, atol=0.05)
        with pytest.raises(UsageError, match="unknown precision"):
            load_prior(original[1], precision="fp64")
        with pytest.raises(UsageError, match="unknown device"):
            load_prior(original[1], device="gpu")

    def test_describes_itself(self, folder):
        (folder / "recipe.json").write_text('{"steps": 7}')
        facts = describe_checkpoint(folder)
        parameters = sum(p.numel() for p in make_unet().parameters())
        assert facts["parameters"] == parameters
        assert facts["size_mib"] == pytest.approx(4 * parameters / 2**20, abs=0.02)
        assert facts["widths"] == [8, 16] and facts["channels"] == 3 and facts["attention"] is True
        assert facts["schedule"] == "linear" and facts["dtype"] == "float32" and facts["recipe"] == {"steps": 7}
        assert facts["sigma_max"] == pytest.approx(78.7, abs=0.1)
        assert facts["flop_per_pixel"] > 1000
        json.dumps(facts)

    def test_counts_the_operations_of_a_convolution(self):
        from invdiff.priors.stored.diffusers_folder import flop_per_pixel

        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Conv2d(3, 5, 3, padding=1)

            def forward(self, x, t):
                return self.layer(x)

        assert flop_per_pixel(Net(), 3, 1) == 2 * 3 * 5 * 9


class TestRefusals:
    @pytest.mark.parametrize(
        "name", ["model_index.json", "unet/config.json", WEIGHTS, "scheduler/scheduler_config.json"]
    )
    def test_a_missing_file_is_named(self, folder, name):
        (folder / name).unlink()
        with pytest.raises(CheckpointError, match=f"missing {name}"):
            load_prior(folder)

    def test_all_missing_files_are_named(self, tmp_path):
        with pytest.raises(
            CheckpointError, match=r"missing model_index.json, scheduler/.*|missing model_index.json, unet/"
        ):
            load_prior(tmp_path)

    @pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
    @pytest.mark.parametrize(("text", "says"), [('{"a": ', "not valid JSON"), ("[1]", "expected a JSON object")])
    def test_corrupt_settings_are_named(self, folder, name, text, says):
        (folder / name).write_text(text)
        with pytest.raises(CheckpointError, match=f"{name}: {says}"):
            load_prior(folder)

    @pytest.mark.parametrize("keep", [0, 5, 200, 10_000])
    def test_truncated_weights(self, folder, keep):
        path = folder / WEIGHTS
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(CheckpointError, match="truncated, or not a safetensors file"):
            load_prior(folder)

    def damaged_state(self, folder, change):
        from safetensors.torch import load_file, save_file

        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS)
        with pytest.raises(CheckpointError) as caught:
            load_prior(folder)
        return str(caught.value)

    def test_weights_that_do_not_fit(self, folder):
        def change(state):
            del state["conv_in.bias"], state["conv_in.weight"]
            state["extra.weight"] = torch.zeros(1)
            state["conv_out.bias"] = torch.zeros(7)

        message = self.damaged_state(folder, change)
        assert "missing conv_in.weight, conv_in.bias" in message
        assert "unexpected extra.weight" in message
        assert "conv_out.bias is (7,), should be (3,)" in message

    def test_only_the_first_few_problems_are_named(self, folder):
        message = self.damaged_state(folder, lambda state: [state.pop(name) for name in list(state)[:10]])
        assert "and 7 more" in message and len(message) < 500

    def test_weights_that_are_not_numbers(self, folder):
        message = self.damaged_state(folder, lambda state: state["conv_out.bias"].fill_(float("nan")))
        assert "conv_out.bias holds NaN or infinity" in message

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"_class_name": "UNet2DConditionModel"}, "describes a UNet2DConditionModel; supported is"),
            ({"_class_name": "DELETE"}, "names no class"),
            ({"num_class_embeds": 10}, "class label"),
            ({"class_embed_type": "timestep"}, "class label"),
            ({"time_embedding_type": "fourier"}, "time embedding"),
            ({"out_channels": 4}, "in_channels=3 and out_channels=4"),
            ({"block_out_channels": 8}, "block_out_channels must be a list"),
            ({"down_block_types": ["DownBlock2D"]}, "no UNet2DModel can be built"),
            ({"down_block_types": ["DownBlock2D", "NoSuchBlock"]}, "no UNet2DModel can be built"),
            ({"block_out_channels": [8, 32]}, "does not fit"),
        ],
    )
    def test_networks_that_are_no_prior(self, folder, changes, says):
        edit(folder / "unet/config.json", **changes)
        with pytest.raises(CheckpointError, match=says):
            load_prior(folder)

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"_class_name": "ScoreSdeVeScheduler"}, "trained with ScoreSdeVeScheduler"),
            ({"prediction_type": "flow"}, "unknown prediction type"),
            ({"beta_schedule": "sigmoid"}, "unknown diffusers beta_schedule"),
            ({"rescale_betas_zero_snr": True}, "zero terminal SNR"),
            ({"num_train_timesteps": "many"}, "scheduler_config.json"),
        ],
    )
    def test_schedulers_that_are_no_ddpm(self, folder, changes, says):
        edit(folder / "scheduler/scheduler_config.json", **changes)
        with pytest.raises(CheckpointError, match=says):
            load_prior(folder)

    def test_latent_pipelines(self, folder):
        edit(folder / "model_index.json", vqvae=["diffusers", "VQModel"])
        with pytest.raises(CheckpointError, match="a pipeline with a vqvae is not supported"):
            load_prior(folder)
        edit(folder / "model_index.json", vqvae="DELETE", unet=["diffusers", "UNet3DConditionModel"])
        with pytest.raises(CheckpointError, match="UNet3DConditionModel"):
            load_prior(folder)

    def test_shards_outside_the_folder(self, folder):
        (folder / WEIGHTS).unlink()
        index = {"weight_map": {"conv_in.weight": "../../secret.safetensors"}}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match="beside their index"):
            load_prior(folder)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


class TestTensorFiles:
    def test_are_read_in_both_formats(self, tmp_path):
        from safetensors.torch import save_file

        tensors = {"a": torch.randn(3, generator=generator())}
        save_file(tensors, tmp_path / "a.safetensors")
        torch.save(tensors, tmp_path / "a.pt")
        torch.save(tensors, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
        for name in ("a.safetensors", "a.pt", "old.bin"):
            assert torch.equal(load_tensors(tmp_path / name)["a"], tensors["a"])

    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_in_a_pickle_is_refused_and_not_run(self, tmp_path, zipped):
        evidence, path = tmp_path / "executed", tmp_path / "bad.pt"
        torch.save({"a": Malicious(str(evidence))}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match="contains more than tensors; convert it to safetensors"):
            load_tensors(path)
        assert not evidence.exists()
        torch.load(path, weights_only=False)  # noqa: TID251  proves that the file would have done it
        assert evidence.exists()

    def test_code_in_a_checkpoint_folder_is_refused_and_not_run(self, folder, tmp_path):
        (folder / WEIGHTS).unlink()
        evidence = tmp_path / "executed"
        torch.save({"a": Malicious(str(evidence))}, folder / "unet/diffusion_pytorch_model.bin")
        with pytest.raises(CheckpointError, match="more than tensors"):
            load_prior(folder)
        assert not evidence.exists()

    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            ("a.pt", b"", "damaged, or not a torch file"),
            ("a.pt", b"hello world, this is text", "damaged, or not a torch file"),
            ("a.bin", b"\x89PNG\r\n\x1a\n" + bytes(100), "damaged, or not a torch file"),
            ("a.pth", b"PK\x03\x04" + bytes(50), "truncated or damaged"),
            ("a.ckpt", b"\x80\x02", "damaged, or not a torch file"),
            ("a.safetensors", b"hello world, this is text", "truncated, or not a safetensors file"),
            ("a.npz", b"x", "not a tensor file"),
        ],
    )
    def test_other_files_are_refused_in_one_line(self, tmp_path, name, content, says):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=says) as caught:
            load_tensors(tmp_path / name)
        assert "\n" not in str(caught.value) and name in str(caught.value)

    def test_a_truncated_torch_file_is_refused(self, tmp_path):
        path = tmp_path / "a.pt"
        torch.save({"a": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(CheckpointError, match="truncated or damaged"):
            load_tensors(path)

    def test_missing_files_and_folders(self, tmp_path):
        with pytest.raises(CheckpointError, match="no such file"):
            load_tensors(tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match="is a folder"):
            load_tensors(tmp_path)

    def test_a_file_without_names_is_no_checkpoint(self, folder):
        (folder / WEIGHTS).unlink()
        torch.save([torch.zeros(1)], folder / "unet/diffusion_pytorch_model.bin")
        with pytest.raises(CheckpointError, match="no state dict"):
            load_prior(folder)


class TestSources:
    def test_a_prior_is_itself(self):
        prior = GaussianPrior(torch.zeros(2), 1.0)
        assert load_prior(prior) is prior

    def test_shipped_checkpoints_have_names(self, original, tmp_path, monkeypatch):
        shutil.copytree(original[1], tmp_path / "demo")
        (tmp_path / "not-one").mkdir()
        monkeypatch.setattr(loading, "CHECKPOINTS", tmp_path)
        assert shipped() == ["demo"]
        assert load_prior("demo").name == "demo"
        assert describe_checkpoint("demo")["name"] == "demo"
        with pytest.raises(UsageError, match=r"unknown prior 'dmo'\. Did you mean 'demo'"):
            load_prior("dmo")
        monkeypatch.setattr(loading, "CHECKPOINTS", tmp_path / "nothing")
        assert shipped() == []

    def test_paths_and_things_that_are_no_prior(self, original, tmp_path):
        for source in (tmp_path / "no", str(tmp_path / "no"), "./no", "no/such/folder"):
            with pytest.raises(CheckpointError, match="no such folder"):
                load_prior(source)
        with pytest.raises(CheckpointError, match="is a file"):
            load_prior(original[1] / "model_index.json")
        for source in (None, 3, torch.nn.Identity()):
            with pytest.raises(UsageError, match="DeepinvPrior"):
                load_prior(source)

    def test_hub_ids_are_fetched_in_part(self, original, monkeypatch):
        import huggingface_hub

        asked = []

        def snapshot_download(repository, allow_patterns):
            asked.append((repository, allow_patterns))
            return str(original[1])

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        prior = load_prior("someone/something")
        assert prior.name == "someone/something" and asked[0][0] == "someone/something" and len(asked) == 1
        assert not any(pattern.endswith(".bin") for pattern in asked[0][1])
        assert_same_network(prior, original[0].unet)

    def test_an_unreachable_hub_is_said_so(self, monkeypatch):
        import huggingface_hub

        def snapshot_download(repository, allow_patterns):
            raise ConnectionError("Name or service not known\nmore")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        with pytest.raises(
            CheckpointError, match=r"cannot be fetched .* \(ConnectionError: Name or service not known\)"
        ):
            load_prior("someone/something")


class TestBrokenInstallation:
    MESSAGES = (
        RuntimeError("operator torchvision::nms does not exist"),
        AttributeError("partially initialized module 'torchvision' has no attribute 'extension'"),
        ImportError("/env/lib/torchvision/_C.so: undefined symbol: _ZN3c106detail"),
    )

    @pytest.mark.parametrize("error", MESSAGES)
    def test_is_explained_with_versions_and_the_fix(self, error):
        says = rf"torch {torch.__version__.split('+')[0]}.* and torchvision .* do not belong together"
        with pytest.raises(InvdiffError, match=says) as caught, explain_import_failure():
            raise error
        assert "pip install --force-reinstall torch torchvision" in str(caught.value)
        assert caught.value.__cause__ is error

    def test_is_recognised_inside_the_error_of_diffusers(self):
        with pytest.raises(InvdiffError, match=r"nms does not exist"), explain_import_failure():
            try:
                raise self.MESSAGES[0]
            except RuntimeError as error:
                raise RuntimeError("Failed to import diffusers.models (look up to see its traceback)") from error

    def test_other_errors_pass(self):
        for error in (
            RuntimeError("out of memory"),
            ModuleNotFoundError("No module named 'torchvision'"),
            KeyError("a"),
        ):
            with pytest.raises(type(error)) as caught, explain_import_failure():
                raise error
            assert caught.value is error

    def test_is_explained_where_a_prior_is_loaded(self, original, monkeypatch):
        real = builtins.__import__

        def broken(name, *arguments, **options):
            if name == "diffusers":
                raise self.MESSAGES[0]
            return real(name, *arguments, **options)

        monkeypatch.setattr(builtins, "__import__", broken)
        with pytest.raises(InvdiffError, match="do not belong together"):
            load_prior(original[1])


# The bridge to deepinv.

PRIOR = GaussianPrior(0.5 * torch.ones(1, 4, 4), 0.05)


class TestPriorAsDenoiser:
    def test_is_a_deepinv_denoiser_that_answers_the_same(self):
        from deepinv.models import Denoiser

        denoiser = PRIOR.to_deepinv()
        assert isinstance(denoiser, Denoiser)
        x = torch.rand(2, 1, 4, 4, generator=generator())
        expected = PRIOR.denoise(x, 0.1)
        batch = torch.tensor([0.1, 0.1])
        for sigma in (0.1, torch.tensor(0.1), torch.tensor([0.1]), batch, batch.reshape(2, 1, 1, 1), [0.1, 0.1]):
            torch.testing.assert_close(denoiser(x, sigma), expected)
        torch.testing.assert_close(denoiser(x, batch.double().numpy()), expected)
        mixed = denoiser(x, torch.tensor([0.0, 0.1]))
        assert torch.equal(mixed[0], x[0])
        torch.testing.assert_close(mixed[1], expected[1])
        assert torch.equal(denoiser(x, 0), x)
        with pytest.raises(UsageError, match="zero or more"):
            denoiser(x, -0.1)
        with pytest.raises(UsageError, match="one per image"):
            denoiser(x, torch.ones(3))

    def test_carries_the_network_as_a_submodule(self, original):
        prior = load_prior(original[1])
        denoiser = prior.to_deepinv()
        assert len(list(denoiser.parameters())) == len(list(prior.network.parameters())) > 0
        denoiser.to("meta")
        assert prior.device.type == "meta"

    def test_runs_in_the_algorithms_of_deepinv(self, original):
        import deepinv

        x = PRIOR.sample(1, generator()).float().clamp(0, 1)
        mask = (torch.rand(1, 1, 4, 4, generator=generator(1)) > 0.4).float()
        physics = deepinv.physics.Inpainting(
            img_size=(1, 4, 4), mask=mask, noise_model=deepinv.physics.GaussianNoise(0.05)
        )
        y = physics(x)
        fidelity = deepinv.optim.data_fidelity.L2()
        denoiser = PRIOR.to_deepinv()
        sde = deepinv.sampling.VariancePreservingDiffusion(device="cpu")
        solver = deepinv.sampling.EulerSolver(timesteps=torch.linspace(1, 0.01, 5))
        posterior = deepinv.sampling.PosteriorDiffusion(
            data_fidelity=deepinv.sampling.DPSDataFidelity(denoiser=denoiser), denoiser=denoiser, sde=sde, solver=solver
        )
        pnp = deepinv.optim.PGD(
            data_fidelity=fidelity, prior=deepinv.optim.PnP(denoiser), sigma_denoiser=0.05, max_iter=5
        )
        algorithms = {
            "DiffPIR": deepinv.sampling.DiffPIR(denoiser, fidelity, sigma=0.05, max_iter=5),
            "DDRM": deepinv.sampling.DDRM(denoiser, sigmas=[1.0, 0.5, 0.1, 0.0]),
            "PosteriorDiffusion": posterior,
            "PnP": pnp,
        }
        for name, algorithm in algorithms.items():
            restored = algorithm(y, physics)
            assert restored.shape == x.shape and torch.isfinite(restored).all(), name
        with torch.no_grad():
            network = load_prior(original[1]).to_deepinv()
            image = torch.rand(1, 3, 8, 8, generator=generator())
            blur = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
            assert deepinv.sampling.DDRM(network, sigmas=[1.0, 0.1])(blur(image), blur).shape == image.shape

    def test_plug_and_play_finds_the_posterior_mean_of_a_gaussian(self):
        """Proximal gradient descent whose denoiser is the prior's proximal operator: prox_{s^2}(-log p) = denoise for a
        Gaussian, so the fixed point with step s^2 / sigma_y^2 is E[x | y]. A wrong unit of sigma moves it."""
        import deepinv

        sigma_y, mask = 0.2, torch.zeros(1, 1, 4, 4)
        mask[..., ::2] = 1
        physics = deepinv.physics.Inpainting(img_size=(1, 4, 4), mask=mask)
        y = physics(torch.rand(1, 1, 4, 4, generator=generator()))
        exact = PRIOR.posterior(torch.diag(mask.flatten()), y.flatten(), sigma_y).mean().float()

        def restore(factor):
            algorithm = deepinv.optim.PGD(
                data_fidelity=deepinv.optim.data_fidelity.L2(),
                prior=deepinv.optim.PnP(PRIOR.to_deepinv()),
                stepsize=0.5,
                sigma_denoiser=factor * sigma_y * 0.5**0.5,
                max_iter=200,
            )
            return algorithm(y, physics)[0]

        torch.testing.assert_close(restore(1.0), exact, rtol=1e-4, atol=1e-4)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(restore(2**0.5), exact, rtol=1e-4, atol=1e-4)


class TestDenoiserAsPrior:
    def test_every_kind_of_callable(self):
        prior = DeepinvPrior(lambda x, sigma: x * 0.5, channels=1, sigma_max=2.0)
        assert isinstance(prior, Prior) and prior.sigma_max == 2.0
        x = torch.rand(2, 1, 4, 4)
        assert torch.equal(prior.denoise(x, 0.1), 0.5 * x)
        assert torch.equal(prior(x, 0.1), 0.5 * x)
        for make, says in [
            (lambda: prior.denoise(torch.zeros(1, 3, 4, 4), 0.1), "1 channel"),
            (lambda: prior.denoise(x, 0.0), "sigma must be positive"),
            (lambda: DeepinvPrior(lambda x, sigma: x[:, :, :2]).denoise(x, 0.1), "shape it was given"),
            (lambda: DeepinvPrior(lambda x, sigma: None).denoise(x, 0.1), "got NoneType"),
            (lambda: DeepinvPrior(3), "callable"),
            (lambda: DeepinvPrior(lambda x, sigma: x, sigma_min=2.0, sigma_max=1.0), "sigma_min < sigma_max"),
        ]:
            with pytest.raises(UsageError, match=says):
                make()

    def test_there_and_back_is_the_same_prior(self):
        x = torch.rand(2, 1, 4, 4, generator=generator())
        back = load_prior(PRIOR.to_deepinv())
        assert isinstance(back, DeepinvPrior)
        for sigma in (0.1, torch.tensor([0.1, 0.3])):
            torch.testing.assert_close(back.denoise(x, sigma), PRIOR.denoise(x, sigma))
            torch.testing.assert_close(back.to_deepinv()(x, sigma), PRIOR.denoise(x, sigma))

    def test_a_trained_denoiser_of_deepinv(self):
        import deepinv

        with torch.random.fork_rng(devices=[]):
            denoiser = deepinv.models.DRUNet(1, 1, nc=(4, 4, 4, 4), nb=1, pretrained=None)
        prior = load_prior(denoiser, device="cpu")
        assert not any(parameter.requires_grad for parameter in denoiser.parameters())
        x = torch.rand(2, 1, 16, 16, dtype=torch.float64, generator=generator(), requires_grad=True)
        clean = prior.denoise(x, torch.tensor([0.1, 0.2]))
        assert clean.dtype == torch.float64 and clean.shape == x.shape
        torch.testing.assert_close(clean[:1], prior.denoise(x[:1], 0.1), rtol=1e-5, atol=1e-6)
        (gradient,) = torch.autograd.grad(clean.sum(), x)
        assert torch.isfinite(gradient).all()
        assert prior.describe()["denoiser"].endswith("DRUNet")


def test_names_are_public_and_deepinv_is_not_imported_for_them():
    import subprocess

    code = (
        "import sys, invdiff.priors as p; assert 'torch' not in sys.modules; "
        "[getattr(p, name) for name in p.__all__]; assert set(p.__all__) <= set(dir(p)); "
        "assert not {'deepinv', 'diffusers'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    from invdiff import priors

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = priors.nothing
