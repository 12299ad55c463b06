"""What bitsandbytes' layers are kept from: seen on layers that have what its own are asked for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from workbench.models.quantized import leave_unpackable, without_cpu_packing

FLAG = "support_avx512bf16_for_cpu"


def four_bit_layer(width: int, blocksize: int) -> nn.Module:
    layer = nn.Linear(width, 64)
    layer.weight.quant_state = SimpleNamespace(shape=torch.Size((64, width)), blocksize=blocksize)  # type: ignore[attr-defined]
    setattr(layer, FLAG, True)
    return layer


@pytest.mark.parametrize(("width", "blocksize", "repacked"), [(96, 64, False), (128, 64, True), (128, 256, False)])
def test_rows_of_no_whole_number_of_blocks_are_not_repacked(width: int, blocksize: int, repacked: bool) -> None:
    model = nn.Sequential(four_bit_layer(width, blocksize), nn.Linear(4, 4))
    leave_unpackable(model)
    assert getattr(model[0], FLAG) is repacked and not hasattr(model[1], FLAG)
    with without_cpu_packing(model):
        assert not getattr(model[0], FLAG)
    assert getattr(model[0], FLAG) is repacked
