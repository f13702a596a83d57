"""The protocol of an evaluation: what it says, what it refuses, and that its scores are those of the single functions."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from invdiff.errors import UsageError
from invdiff.evaluation.protocol import PERCEPTUAL, Protocol
from invdiff.scores import perceptual
from invdiff.scores.metrics import psnr, ssim
from invdiff.specs.parameters import build


def batch(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    truth = torch.rand(shape, generator=draws)
    return truth + 0.1 * torch.randn(shape, generator=draws), truth


@pytest.mark.parametrize("eight_bit", [True, False])
@pytest.mark.parametrize("y_channel", [True, False])
@pytest.mark.parametrize("border", [0, 3])
def test_scores_are_those_of_the_single_functions(eight_bit: bool, y_channel: bool, border: int) -> None:
    x, truth = batch(3, 3, 24, 20)
    rows = Protocol(eight_bit=eight_bit, y_channel=y_channel, border=border).scores(x, truth)
    expected: dict[str, Any] = {}
    for luma in [False, True][: 1 + y_channel]:
        settings: dict[str, Any] = {"eight_bit": eight_bit, "border": border, "y_channel": luma}
        for name, measure in (("psnr", psnr), ("ssim", ssim)):
            expected[name + "_y" * luma] = measure(x, truth, **settings).tolist()
    assert rows == [dict(zip(expected, row, strict=True)) for row in zip(*expected.values(), strict=True)]
    json.dumps(rows, allow_nan=False)


def test_an_image_gets_the_scores_that_there_are_for_it() -> None:
    protocol = Protocol(y_channel=True, border=2, perceptual=("lpips",))
    assert {*protocol.scores(*batch(1, 3, 15, 15))[0]} == {"psnr", "ssim", "psnr_y", "ssim_y"}
    assert {*protocol.scores(*batch(1, 3, 14, 15))[0]} == {"psnr", "psnr_y"}
    assert {*protocol.scores(*batch(1, 2, 16, 16))[0]} == {"psnr", "ssim"}
    grey = protocol.scores(*batch(1, 1, 16, 16))[0]
    assert grey["psnr_y"] == grey["psnr"] and grey["ssim_y"] == grey["ssim"]


def test_images_alone_score_as_in_a_batch() -> None:
    x, truth = batch(4, 3, 20, 20)
    protocol = Protocol(y_channel=True)
    assert protocol.scores(x, truth) == [protocol.scores(a[None], b[None])[0] for a, b in zip(x, truth, strict=True)]


def test_a_border_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="border must be 0 to 3 whole pixels for images of 8 x 9, got 4"):
        Protocol(border=4).scores(*batch(1, 3, 8, 9))


def test_lines_say_every_convention() -> None:
    text = "\n".join(Protocol(y_channel=True, border=4).lines())
    for words in (
        "[0, 1]", "clipped", "rounded to multiples of 1/255", "one number per image, then averaged", "border of 4 pixels",
        "11 x 11", "sigma 1.5", "no sample covariance", "65.481 R", "mean of the samples and the single samples",
        "never the best of several",
    ):  # fmt: skip
        assert words in text, words
    text = "\n".join(Protocol(eight_bit=False).lines())
    assert "not rounded to 8 bits" in text and "whole image" in text and "BT.601" not in text


def test_lines_say_what_is_not_available(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    lines = Protocol(perceptual=("lpips", "fid")).lines()
    assert any(line.startswith("LPIPS (AlexNet, version 0.1): not available: its weights are not at") for line in lines)
    assert any(line.startswith("FID") and "not available" in line for line in lines)


def test_settings_build_the_protocol_again() -> None:
    protocol = Protocol(eight_bit=False, border=2, perceptual=("dists", "lpips"))
    assert build(Protocol, "protocol", json.loads(json.dumps(protocol.settings()))) == protocol
    texts = {"eight_bit": "no", "border": "2", "perceptual": "dists, lpips,dists"}
    assert build(Protocol, "protocol", texts) == protocol
    assert hash(protocol) and tuple(perceptual.KINDS) == PERCEPTUAL


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"border": -1}, "border=-1 must be >= 0 pixels"),
        ({"border": 1.5}, "border=1.5 is not a whole number"),
        ({"eight_bit": "maybe"}, "eight_bit='maybe' is not a true or false"),
        ({"perceptual": ("lpip",)}, "unknown perceptual metric 'lpip'. Did you mean 'lpips'"),
        ({"crop": 4}, "unknown parameter of protocol 'crop'"),
    ],
)
def test_other_protocols_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as error:
        build(Protocol, "protocol", values)
    assert words in str(error.value)
