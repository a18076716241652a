"""The ONNX file computes what the network computes, and exporting leaves the network alone."""

from __future__ import annotations

import copy

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from cxr_mlflow.models import MODELS
from cxr_mlflow.serving.export import export_onnx


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS))
def test_file_equals_network_and_network_stays(name, tmp_path, capfd):
    torch.manual_seed(0)
    network = MODELS[name](4).to(memory_format=torch.channels_last)
    network.train()
    with torch.no_grad():
        network(torch.rand(4, 1, 48, 48))  # batch norm statistics that are not the initial ones
    before = copy.deepcopy(network.state_dict())
    capfd.readouterr()

    export_onnx(network, tmp_path / "model.onnx", image_size=48)

    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]  # weights are inside
    assert network.training
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
    kernels = [p for p in network.parameters() if p.dim() == 4 and min(p.shape[1:]) > 1]
    assert all(k.is_contiguous(memory_format=torch.channels_last) for k in kernels)

    session = ort.InferenceSession(str(tmp_path / "model.onnx"))
    assert [i.name for i in session.get_inputs()] == ["images"]
    assert [o.name for o in session.get_outputs()] == ["logits"]
    network.eval()
    for batch in (1, 3, 8):
        images = torch.rand(batch, 1, 48, 48)
        with torch.no_grad():
            expected = network(images).numpy()
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        np.testing.assert_allclose(logits, expected, atol=1e-4)


class Moody(nn.Module):
    """Says something else each time: no file can agree with it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) + torch.rand_like(images[:, :, 0, 0])


@pytest.mark.slow
def test_a_file_that_disagrees_is_refused_and_removed(tmp_path):
    with pytest.raises(RuntimeError, match="not the trained network"):
        export_onnx(Moody(), tmp_path / "model.onnx", image_size=16)
    assert not list(tmp_path.iterdir())
