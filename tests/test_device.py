"""Names of devices: what is understood, what is refused, and with which words."""

from __future__ import annotations

import pytest
import torch

from invdiff.errors import UsageError
from invdiff.machine.device import choose_device


def machine(monkeypatch: pytest.MonkeyPatch, cards: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize(
    "name", ["cpu:foo", "cpu:0", "cpu:", "auto:1", "mps:0", "cuda:", "cuda:one", "cuda:-1", "cuda:1:2"]
)
def test_a_number_belongs_to_cuda_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    machine(monkeypatch, 2)
    with pytest.raises(UsageError, match=r"only cuda takes a number, e\.g\. cuda:1"):
        choose_device(name)


def test_unknown_and_absent_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 0)
    with pytest.raises(UsageError, match=r"unknown device 'gpu'"):
        choose_device("gpu")
    for name in ("cuda", "cuda:0", "mps"):
        with pytest.raises(
            UsageError, match=f"device '{name}' is not available here; use --device auto, or one of: cpu"
        ):
            choose_device(name)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")


def test_cards_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 2)
    assert choose_device("cuda:1") == torch.device("cuda:1") and choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda") == torch.device("cuda")
    with pytest.raises(UsageError, match="device 'cuda:99' is not available here; there are 2: cuda:0 to cuda:1"):
        choose_device("cuda:99")
