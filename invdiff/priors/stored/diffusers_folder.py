"""A diffusers folder with a UNet2DModel, checked file by file before anything is built."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from invdiff.diffusion.parameterization import check_prediction
from invdiff.diffusion.schedule import Schedule
from invdiff.errors import CheckpointError, UsageError, first_line
from invdiff.priors.gaussian_images import GaussianImages
from invdiff.priors.stored.environment import explain_import_failure
from invdiff.priors.stored.tensor_files import load_tensors, read_json

STATISTICS = "image_statistics.json"
SUPPORTED = "an unconditional, pixel-space UNet2DModel with a DDPM-type scheduler"
# Schedulers whose training process is the DDPM chain. They differ in how they sample, for which they are not used here.
_SCHEDULERS = (
    "DDPMScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler",
    "PNDMScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler", "DPMSolverSinglestepScheduler",
    "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler",
    "LMSDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
)  # fmt: skip
_STEM = "diffusion_pytorch_model"
_WEIGHTS = tuple(f"{_STEM}{end}" for end in (".safetensors", ".fp16.safetensors", ".bin", ".fp16.bin", ".pt", ".pth"))
_INDEXES = (f"{_STEM}.safetensors.index.json", f"{_STEM}.bin.index.json")
# Attention layers were saved under these names before diffusers 0.15.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@dataclass(frozen=True)
class Checkpoint:
    """A UNet2DModel and the schedule it was trained with; a subclass says where the weights come from.

    path: the folder or file; config: the keyword arguments of UNet2DModel, read from config_path; weights: the files that
    hold the weights; scheduler: the content of scheduler_config.json, from which schedule and prediction follow.
    """

    format: ClassVar[str] = ""

    path: Path
    config_path: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    scheduler: dict[str, Any]
    schedule: Schedule
    prediction: str

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All weights under UNet2DModel's names, in the dtype they are stored in. Raises CheckpointError."""
        raise NotImplementedError

    def statistics(self) -> GaussianImages | None:
        """The Gaussian model of the images beside the network (image_statistics.json), if there is one.

        Raises CheckpointError for a file that is damaged or of another number of channels."""
        path = self.path / STATISTICS
        if not path.is_file():
            return None
        try:
            statistics = GaussianImages.from_dict(read_json(path))
        except UsageError as error:
            raise CheckpointError(f"{path}: {error}; delete it to do without") from None
        if len(statistics.mean) != self.channels:
            raise CheckpointError(
                f"{path} is of {len(statistics.mean)} channel(s), the network of {self.channels}; delete it to do without"
            )
        return statistics

    @property
    def schedule_name(self) -> str:
        name = self.scheduler.get("beta_schedule", "linear")
        return "trained_betas" if self.scheduler.get("trained_betas") else str(name)

    @property
    def channels(self) -> int:
        return int(self.config.get("in_channels", 3))

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.config["block_out_channels"])

    @property
    def multiple(self) -> int:
        """The sides of images must be multiples of this number of pixels: every level but the last halves them."""
        return 2 ** (len(self.widths) - 1)

    @property
    def attention(self) -> bool:
        """Whether some layer attends over all pixels, at a cost that grows with the square of their number."""
        blocks = [*self.config["down_block_types"], *self.config["up_block_types"]]
        middle = self.config.get("mid_block_type", "UNetMidBlock2D") is not None and self.config.get(
            "add_attention", True
        )
        return bool(middle) or any("Attn" in str(block) for block in blocks)

    def sha256(self) -> str:
        """The hash of the weights file; of its shards one after the other, in the order of their names."""
        digest = hashlib.sha256()
        for path in self.weights:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()

    def network(self, state: dict[str, torch.Tensor] | None = None) -> Any:
        """The UNet2DModel in float32 with exactly these weights. Raises CheckpointError if they do not fit."""
        network = self._skeleton()
        state = self.state_dict() if state is None else state
        self._check_fit(network.state_dict(), state)
        widened = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
        network.load_state_dict(widened, strict=True, assign=True)
        return network.eval()

    def _skeleton(self) -> Any:
        """The network without weights (on the meta device), so that none are drawn only to be replaced."""
        with explain_import_failure():
            from diffusers import UNet2DModel
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                return UNet2DModel.from_config(self.config)
        except Exception as error:  # a wrong value can raise almost any error in its constructor
            reason = first_line(error)
            raise CheckpointError(f"{self.config_path}: no UNet2DModel can be built from it ({reason})") from error

    def _check_fit(self, expected: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
        shapes = [
            f"{name} is {tuple(state[name].shape)}, should be {tuple(expected[name].shape)}"
            for name in expected
            if name in state and state[name].shape != expected[name].shape
        ]
        problems = [
            ("missing", [name for name in expected if name not in state]),
            ("unexpected", [name for name in state if name not in expected]),
            ("wrong shape:", shapes),
        ]
        said = [f"{what} {first_few(names)}" for what, names in problems if names]
        if said:
            weights = self.weights[0]
            what = "its weights make no U-Net" if weights == self.config_path else f"does not fit {self.config_path}"
            raise CheckpointError(f"{weights}{':' if weights == self.config_path else ''} {what}: {'; '.join(said)}")

    def describe(self) -> dict[str, Any]:
        """Plain data for people and provenance; the keys are those of `describe_checkpoint`."""
        state = self.state_dict()
        network = self.network(state)
        return {
            "path": str(self.path),
            "format": self.format,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "size_mib": round(sum(path.stat().st_size for path in self.weights) / 2**20, 2),
            "dtype": ", ".join(sorted({str(value.dtype).removeprefix("torch.") for value in state.values()})),
            "channels": self.channels,
            "widths": list(self.widths),
            "attention": self.attention,
            "prediction": self.prediction,
            "schedule": self.schedule_name,
            "steps": len(self.schedule),
            # [0, 1] is half as wide as the network's [-1, 1].
            "sigma_min": float(self.schedule.sigmas[0]) / 2,
            "sigma_max": float(self.schedule.sigmas[-1]) / 2,
            "multiple": self.multiple,
            "flop_per_pixel": flop_per_pixel(network, self.channels, self.multiple),
            "sha256": self.sha256(),
        }


@dataclass(frozen=True)
class DiffusersFolder(Checkpoint):
    """The network of a diffusers folder: configuration, weight files and schedule. The weights are read on demand."""

    format: ClassVar[str] = "diffusers folder"

    @classmethod
    def open(cls, folder: Path) -> DiffusersFolder:
        """Check every file and setting. Layouts: model_index.json + unet/ + scheduler/, or config.json and weights in
        the folder itself with scheduler_config.json in it, in scheduler/ or in ../scheduler/.

        Raises CheckpointError, which names the missing files or the content that is not supported.
        """
        flat = (folder / "config.json").is_file() and not (folder / "unet").is_dir()
        unet = folder if flat else folder / "unet"
        places = (
            [folder / "scheduler", folder] if not flat else [folder, folder / "scheduler", folder.parent / "scheduler"]
        )
        found = (place / "scheduler_config.json" for place in places)
        scheduler_path = next((path for path in found if path.is_file()), places[0] / "scheduler_config.json")
        weights = find_weights(unet)
        needed = [unet / "config.json", scheduler_path, *weights]
        if not flat:
            needed.insert(0, folder / "model_index.json")
        missing = [str(path.relative_to(folder)) for path in needed if not path.is_file()]
        if missing:
            raise CheckpointError(f"{folder}: not a complete diffusers checkpoint, missing {', '.join(missing)}")
        if (folder / "model_index.json").is_file():
            _check_index(folder / "model_index.json", read_json(folder / "model_index.json"))
        config = read_json(unet / "config.json")
        _check_network(unet / "config.json", config)
        scheduler = read_json(scheduler_path)
        schedule, prediction = read_scheduler(scheduler_path, scheduler)
        return cls(folder, unet / "config.json", config, weights, scheduler, schedule, prediction)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All weights, as stored. Raises CheckpointError unless they are tensors of finite numbers."""
        state: dict[str, torch.Tensor] = {}
        for path in self.weights:
            part = load_tensors(path)
            check_state(path, part)
            state |= part
        return {_current_name(name): value for name, value in state.items()}

    def describe(self) -> dict[str, Any]:
        """The description of every checkpoint, with the contents of recipe.json and provenance.json where these exist."""
        facts = super().describe()
        for name in ("recipe", "provenance"):
            if (self.path / f"{name}.json").is_file():
                facts[name] = read_json(self.path / f"{name}.json")
        return facts


def check_state(path: Path, state: Any) -> None:
    """Raise CheckpointError unless this is a state dict: names to tensors of finite numbers."""
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: holds no state dict (name -> tensor)")
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{path}: weight {name} holds NaN or infinity")


def find_weights(unet: Path) -> tuple[Path, ...]:
    """The weight files of a unet folder: one file, or the shards that its index lists. Where there is neither, the path at
    which the file is expected."""
    for name in _WEIGHTS:
        if (unet / name).is_file():
            return (unet / name,)
    for name in _INDEXES:
        if (unet / name).is_file():
            shards = read_json(unet / name).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise CheckpointError(f"{unet / name}: no weight_map in this index of shards")
            names = sorted({str(shard) for shard in shards.values()})
            if any(Path(shard).name != shard for shard in names):
                raise CheckpointError(f"{unet / name}: shards must lie beside their index")
            return tuple(unet / shard for shard in names)
    return (unet / _WEIGHTS[0],)


def flop_per_pixel(network: Any, channels: int, multiple: int, side: int = 256) -> float:
    """The floating-point operations of one call for each pixel, counted on the meta device without computing anything."""
    import copy

    from torch.utils.flop_counter import FlopCounterMode

    side = side + -side % multiple
    network = copy.deepcopy(network).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, channels, side, side, device="meta"), torch.zeros(1, device="meta"))
    return counter.get_total_flops() / side**2


def _check_index(path: Path, index: dict[str, Any]) -> None:
    parts = {key: value for key, value in index.items() if isinstance(value, list) and not key.startswith("_")}
    for name in ("vae", "vqvae", "movq", "text_encoder", "prior"):
        if name in parts:
            raise CheckpointError(f"{path}: a pipeline with a {name} is not supported; what is: {SUPPORTED}")
    kind = parts.get("unet", [None, "UNet2DModel"])[-1]
    if kind != "UNet2DModel":
        raise CheckpointError(f"{path}: its unet is a {kind}, which is not supported; what is: {SUPPORTED}")


def _check_network(path: Path, config: dict[str, Any]) -> None:
    def refuse(reason: str) -> None:
        raise CheckpointError(f"{path}: {reason}; supported is {SUPPORTED}")

    kind = config.get("_class_name")
    if kind != "UNet2DModel":
        refuse("it names no class" if kind is None else f"it describes a {kind}")
    if config.get("class_embed_type") is not None or config.get("num_class_embeds") is not None:
        refuse("the network is conditioned on a class label, and a prior has none to give")
    embedding = config.get("time_embedding_type", "positional")
    if embedding != "positional":
        refuse(f"its time embedding is {embedding!r}, which takes no fractional DDPM time")
    for key in ("block_out_channels", "down_block_types", "up_block_types"):
        if not isinstance(config.get(key), list) or not config[key]:
            refuse(f"{key} must be a list, got {config.get(key)!r}")
    entering, leaving = config.get("in_channels", 3), config.get("out_channels", 3)
    if not isinstance(entering, int) or leaving not in (entering, 2 * entering):
        refuse(
            f"in_channels={entering} and out_channels={leaving}: out must equal in, or twice in for a learned variance"
        )


def read_scheduler(path: Path, config: dict[str, Any]) -> tuple[Schedule, str]:
    """The schedule and the prediction type of a scheduler's config. Raises CheckpointError naming its path."""
    kind = config.get("_class_name", "DDPMScheduler")
    if kind not in _SCHEDULERS:
        raise CheckpointError(f"{path}: a network trained with {kind} is not supported; what is: {SUPPORTED}")
    try:
        return Schedule.from_diffusers(config), check_prediction(config.get("prediction_type", "epsilon"))
    except (UsageError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _current_name(name: str) -> str:
    """The present name of a weight; diffusers renamed only attention layers."""
    parts = name.split(".")
    if "attentions" in parts and parts[-2] in _OLD_ATTENTION:
        parts[-2] = _OLD_ATTENTION[parts[-2]]
    return ".".join(parts)


def first_few(names: list[str], limit: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
