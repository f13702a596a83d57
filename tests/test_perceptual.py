"""LPIPS and DISTS with random networks in the place of the published ones, computed a second time from the papers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import torchmetrics
import torchvision
from scipy.linalg import sqrtm

from invdiff.errors import InvdiffError, NumericalError, UsageError
from invdiff.evaluation.protocol import Protocol
from invdiff.priors.stored.tensor_files import load_tensors
from invdiff.scores import perceptual
from invdiff.scores.perceptual import KINDS, PAIRS, distances, frechet_distance, missing

HEADS = Path(torchmetrics.__file__).parent / "functional" / "image"


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torch home with classifiers of random weights. Of the layers that no metric uses one number is stored."""
    home = tmp_path_factory.mktemp("torch")
    (home / "hub" / "checkpoints").mkdir(parents=True)
    draws = torch.Generator().manual_seed(0)
    for name, url in (("alexnet", perceptual._ALEXNET), ("vgg16", perceptual._VGG16)):
        with torch.device("meta"):
            shapes = getattr(torchvision.models, name)(weights=None).state_dict()
        weights = {
            key: torch.randn(value.shape, generator=draws) * (2 / max(1, value[0].numel())) ** 0.5
            if key.startswith("features")
            else torch.zeros(1).expand(value.shape)
            for key, value in shapes.items()
        }
        torch.save(weights, home / "hub" / "checkpoints" / url.rpartition("/")[2])
    return home


@pytest.fixture
def at_hand(networks: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(networks))
    monkeypatch.setattr(perceptual, "_as_published", lambda *file: True)
    return networks / "hub" / "checkpoints"


def images(count: int = 2, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    truth = torch.rand(count, channels, 40, 48, generator=draws)
    return truth + 0.2 * torch.randn(truth.shape, generator=draws), truth


def features(file: Path, layers: list[int]) -> list[torch.nn.Module]:
    """The slices of a classifier, each ending after the given layer of its `features`."""
    with torch.device("meta"):  # without the seconds that random initial values take
        network = (torchvision.models.alexnet if "alexnet" in file.name else torchvision.models.vgg16)().features
    stored = load_tensors(file).items()
    weights = {key.removeprefix("features."): value for key, value in stored if key.startswith("features.")}
    network.load_state_dict(weights, assign=True)
    starts = [0, *(layer + 1 for layer in layers[:-1])]
    return [network[a : b + 1] for a, b in zip(starts, layers, strict=True)]


def lpips(file: Path, layers: list[int], head: str, x: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Zhang et al. 2018, eq. 1: sum over layers of the spatial mean of w . (unit features - unit features)^2."""
    weights = load_tensors(HEADS / "lpips_models" / head)
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    a, b = ((2 * image.clamp(0, 1) - 1 - shift) / scale for image in (x, truth))
    total = torch.zeros(len(x))
    for k, part in enumerate(features(file, layers)):
        a, b = part(a), part(b)
        unit = [feature / feature.norm(dim=1, keepdim=True) for feature in (a, b)]
        total += torch.einsum(
            "c,bchw->bhw", weights[f"lin{k}.model.1.weight"].flatten(), (unit[0] - unit[1]) ** 2
        ).mean((1, 2))
    return total


@pytest.mark.parametrize(
    ("name", "layers", "head"), [("lpips", [1, 4, 7, 9, 11], "alex.pth"), ("lpips_vgg", [3, 8, 15, 22, 29], "vgg.pth")]
)
def test_lpips_is_the_papers_formula(at_hand: Path, name: str, layers: list[int], head: str) -> None:
    x, truth = images()
    with torch.no_grad():
        expected = lpips(PAIRS[name].file, layers, head, x, truth)
        other_range = lpips(PAIRS[name].file, layers, head, (x.clamp(0, 1) + 1) / 2, (truth + 1) / 2)
    # float32, and an epsilon of 1e-8 beside the squared norms
    torch.testing.assert_close(distances(name, x, truth, eight_bit=False), expected, rtol=1e-4, atol=1e-6)
    assert ((expected - other_range).abs() > 1e-2 * expected).all()  # images fed in [0, 1] would be noticed


def test_dists_is_the_papers_formula(at_hand: Path) -> None:
    """Ding et al. 2020, eq. 5-7, on the features with their pooling by Hann windows."""
    x, truth = images()
    weights = load_tensors(HEADS / "dists_models" / "weights.pt")
    window = torch.tensor([1.0, 2.0, 1.0]) / 4  # a Hann window of five, without its zeros

    def stages(image: torch.Tensor) -> list[torch.Tensor]:
        mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        found, h = [image], (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        for k, part in enumerate(features(PAIRS["dists"].file, [3, 8, 15, 22, 29])):
            if k:
                kernel = (window[:, None] * window).expand(h.shape[1], 1, 3, 3)
                h = torch.nn.functional.conv2d(h**2, kernel, stride=2, padding=1, groups=h.shape[1]).sqrt()
                part = part[1:]  # the maximum pooling, replaced
            h = part(h)
            found.append(h)
        return found

    alpha, beta = (weights[name].flatten() for name in ("alpha", "beta"))
    total, first = torch.zeros(2), 0
    with torch.no_grad():
        for a, b in zip(stages(x.clamp(0, 1)), stages(truth), strict=True):
            rows = slice(first, first := first + a.shape[1])
            mean_a, mean_b = a.mean((2, 3)), b.mean((2, 3))
            covariance = (a * b).mean((2, 3)) - mean_a * mean_b
            luminance = (2 * mean_a * mean_b + 1e-6) / (mean_a**2 + mean_b**2 + 1e-6)
            structure = (2 * covariance + 1e-6) / (a.var((2, 3), correction=0) + b.var((2, 3), correction=0) + 1e-6)
            total += luminance @ alpha[rows] + structure @ beta[rows]
    expected = 1 - total / (alpha.sum() + beta.sum())
    torch.testing.assert_close(distances("dists", x, truth, eight_bit=False), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_distances_of_images_alone_of_grey_and_of_none(at_hand: Path, name: str) -> None:
    x, truth = images()
    both = distances(name, x, truth)
    assert both.shape == (2,) and (both > 0.001).all()
    assert torch.equal(both, torch.cat([distances(name, x[k : k + 1], truth[k : k + 1]) for k in range(2)]))
    assert distances(name, truth, truth).abs().max() < 1e-5
    assert not torch.equal(both, distances(name, x, truth, eight_bit=False))
    grey = [image[:, :1] for image in (x, truth)]
    assert torch.equal(distances(name, *grey), distances(name, *(image.expand(-1, 3, -1, -1) for image in grey)))


def test_the_protocol_adds_them_where_it_can(at_hand: Path) -> None:
    x, truth = images()
    rows = Protocol(perceptual=("lpips", "fid")).scores(x, truth)
    assert [*rows[0]] == ["psnr", "ssim", "lpips"]
    assert [row["lpips"] for row in rows] == distances("lpips", x, truth).tolist()
    small = [*Protocol(perceptual=("lpips",)).scores(x[..., :31], truth[..., :31])[0]]
    assert small == ["psnr", "ssim"]
    assert "LPIPS (AlexNet, version 0.1) of whole images, by torchmetrics." in Protocol(perceptual=("lpips",)).lines()


def test_without_weights_the_fix_is_a_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    assert missing("lpips") == (
        f"its weights are not at {file}: curl -L --create-dirs -o '{file}' {KINDS['lpips'].url}"
    )
    with pytest.raises(InvdiffError, match=r"LPIPS \(AlexNet, version 0.1\) is not available: its weights are not at"):
        distances("lpips", *images())
    assert [*Protocol(perceptual=("lpips", "dists")).scores(*images())[0]] == ["psnr", "ssim"]


def test_weights_are_what_was_published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A truncated download has the name of the whole one."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = KINDS["lpips"].file
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half")
    assert missing("lpips").startswith(f"{file} is not what was published")
    content = b"whole"
    url = f"https://example.org/net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setitem(perceptual.KINDS, "lpips", perceptual.Kind("LPIPS", url))
    KINDS["lpips"].file.write_bytes(content)
    assert missing("lpips") == ""


@pytest.mark.parametrize("package", ["torchmetrics", "torchvision", "torch_fidelity"])
def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None if name == package else object())
    assert missing("fid") == f"the package {package} is not installed: pip install {package.replace('_', '-')}"
    with pytest.raises(InvdiffError, match=r"FID .* is not available: the package"):
        frechet_distance([])


class Projection(torch.nn.Module):
    """Five features of an image, in the place of Inception's 2048. Takes bytes, as Inception does."""

    num_features = 5

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8 and images.shape[1] == 3
        draws = torch.Generator().manual_seed(2)
        flat = images.double().flatten(1) / 255
        return flat @ torch.randn(flat.shape[1], 5, generator=draws, dtype=torch.float64) / 20


def test_fid_is_the_distance_of_two_gaussians(at_hand: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """|m - n|^2 + tr(C + D - 2 (C D)^(1/2)) of the features of all batches, rounded to the nearest byte."""
    monkeypatch.setattr(perceptual, "missing", lambda name: "")
    monkeypatch.setattr(perceptual, "_inception", lambda: torchmetrics.image.fid.FrechetInceptionDistance(Projection()))
    x, truth = images(12)
    found = frechet_distance([(x[:5], truth[:5]), (x[5:], truth[5:])])
    a, b = (Projection()((image.clamp(0, 1) * 255).round().byte()) for image in (x, truth))
    root = sqrtm((a.T.cov() @ b.T.cov()).numpy()).real.trace()
    expected = (a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * root
    assert found == pytest.approx(float(expected), rel=1e-4)  # torchmetrics answers in float32
    with pytest.raises(UsageError, match="sets of at least two images, and means little below thousands; got 1"):
        frechet_distance([(x[:1], truth[:1])])


def test_unusable_arguments_are_refused(at_hand: Path) -> None:
    x, truth = images()
    with pytest.raises(UsageError, match="unknown perceptual metric 'niqe'"):
        missing("niqe")
    with pytest.raises(UsageError, match="unknown metric of pairs 'fid'"):
        distances("fid", x, truth)
    with pytest.raises(UsageError, match="at least 32 x 32 pixels, got 40 x 31"):
        distances("lpips", x[..., :31], truth[..., :31])
    with pytest.raises(UsageError, match="got 2 channels"):
        distances("lpips", x[:, :2], truth[:, :2])
    with pytest.raises(NumericalError, match="x holds NaN"):
        distances("lpips", x * torch.nan, truth)
