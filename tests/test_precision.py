"""Settings for GPUs, as far as they can be looked at without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fmoe.numerics.precision import Numerics, exact

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The process's settings, put back afterwards."""
    for name in ("deterministic", "benchmark"):
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "before")
    yield torch.backends
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("deterministic", [False, True])
def test_kernels_are_tried_out_or_deterministic(backends: Any, deterministic: bool) -> None:
    Numerics(deterministic=deterministic).prepare(GPU)
    assert backends.cudnn.deterministic is deterministic
    assert backends.cudnn.benchmark is not deterministic
    assert torch.are_deterministic_algorithms_enabled() is deterministic


def test_a_cpu_needs_no_settings(backends: Any) -> None:
    before = backends.cudnn.deterministic, backends.cudnn.benchmark
    Numerics(deterministic=True).prepare(CPU)
    assert (backends.cudnn.deterministic, backends.cudnn.benchmark) == before


def test_exact_is_float32_and_puts_everything_back() -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul

    def seen() -> tuple[bool | str, ...]:
        return cudnn.allow_tf32, matmul.fp32_precision, cudnn.deterministic, cudnn.benchmark

    default = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        before = seen()
        with exact():
            assert seen() == (False, "ieee", True, False)
        assert seen() == before
    finally:
        matmul.fp32_precision = default


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("device", [CPU, GPU])
def test_a_device_that_would_emulate_bfloat16_gets_float32(
    monkeypatch: pytest.MonkeyPatch, device: torch.device, native: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    able = {"avx2": True, "avx512_bf16": native}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    numerics = Numerics("bfloat16")
    if native:
        assert numerics.fitting(device) is numerics
    else:
        with pytest.warns(UserWarning, match="has no bfloat16: training in float32"):
            assert numerics.fitting(device).precision == "float32"


@pytest.mark.parametrize(
    ("on_gpu", "graphs", "mode"),
    [(True, True, "reduce-overhead"), (True, False, None), (False, True, None)],
)
def test_graphs_on_gpus_alone(
    monkeypatch: pytest.MonkeyPatch, on_gpu: bool, graphs: bool, mode: str | None
) -> None:
    asked: list[str | None] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, mode: asked.append(mode))
    monkeypatch.setattr(torch.Tensor, "is_cuda", on_gpu)
    Numerics(compile=True).compile_parts([nn.Linear(1, 1)], graphs=graphs)
    assert asked == [mode]
    Numerics().compile_parts([nn.Linear(1, 1)], graphs=graphs)
    assert asked == [mode]


def test_a_pass_of_graphs_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    marks: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    Numerics(compile=True).begin_pass(CPU)
    Numerics().begin_pass(GPU)
    assert not marks
    Numerics(compile=True).begin_pass(GPU)
    assert marks == [1]
