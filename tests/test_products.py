"""Products by oneDNN and by MKL are the same up to rounding, whichever CPU this is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fmoe.numerics import products

ROWS = products.FEWEST_ROWS


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    products.mkl_is_slow.cache_clear()
    yield
    products.mkl_is_slow.cache_clear()


@pytest.fixture
def amd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the vendor; both libraries are on every x86 machine."""
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\n")
    monkeypatch.setattr(products, "CPUS", file)


def given(rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, n, 24, generator=g, dtype=torch.float64) for n in (rows, 40))
    return a.to(dtype), b.to(dtype)


def close(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found.double(), wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("rows", [1, ROWS - 1, ROWS, 3 * ROWS])
def test_products_are_those_of_float64(amd: None, rows: int) -> None:
    a, b = given(rows)
    wanted = a.double() @ b.double().transpose(1, 2)
    with torch.no_grad():
        assert products.by_onednn(a) == (rows >= ROWS)
        assert close(products.products(a, b), wanted)
        summed = torch.ones(rows, 40)
        products.add_product(summed, a[1], b[1])
        assert close(summed, 1 + wanted[1])
        part = torch.zeros(rows, 2, 40)  # rows that do not follow one another in memory
        products.add_product(part[:, 1], a[0], b[0].t().contiguous().t())
        assert close(part[:, 1], wanted[0])
        assert not part[:, 0].any()


def test_gradients_of_gradients_do_not_come_here(amd: None) -> None:
    a, b = given(ROWS)
    assert not products.by_onednn(a)
    a.requires_grad_()
    (first,) = torch.autograd.grad(products.products(a, b).square().sum(), a, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), a)
    wanted = 2 * (b.transpose(1, 2) @ b).sum(1, keepdim=True).expand_as(a)
    assert torch.allclose(second, wanted, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_as_torch_does(amd: None, dtype: torch.dtype) -> None:
    a, b = given(ROWS, dtype)
    with torch.no_grad():
        assert torch.equal(products.products(a, b), torch.bmm(a, b.transpose(1, 2)))


@pytest.mark.parametrize("vendor", ["GenuineIntel", None])
def test_elsewhere_as_torch_does(
    vendor: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    if vendor:
        file.write_text(f"vendor_id\t: {vendor}\n")
    monkeypatch.setattr(products, "CPUS", file)
    a, b = given(ROWS)
    with torch.no_grad():
        assert not products.by_onednn(a)
        assert torch.equal(products.products(a, b), torch.bmm(a, b.transpose(1, 2)))
