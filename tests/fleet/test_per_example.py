"""Gradients per example come without the accountants; whoever asks for the rest of Opacus is given it."""

import subprocess
import sys

LAYERS = [
    ("nn.Linear(6, 2)", "torch.randn(3, 6)"),
    ("nn.Conv1d(2, 3, 2)", "torch.randn(3, 2, 5)"),
    ("nn.Conv2d(2, 3, 2)", "torch.randn(3, 2, 4, 4)"),
    ("nn.Conv3d(1, 2, 2)", "torch.randn(3, 1, 3, 3, 3)"),
    ("nn.LayerNorm(4)", "torch.randn(3, 4)"),
    ("nn.GroupNorm(2, 4)", "torch.randn(3, 4, 5)"),
    ("nn.InstanceNorm1d(4, affine=True)", "torch.randn(3, 4, 5)"),
    ("nn.Embedding(5, 2)", "torch.tensor([[0, 1], [1, 4], [2, 2]])"),
]


def alone(code: str) -> str:
    """What ``code`` prints in a process that has imported nothing else."""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout.strip()


def test_layers_have_the_gradients_of_one_example_after_the_other_without_the_accountants() -> None:
    code = """
import sys
import torch
from torch import nn
from fleet.privacy.per_example import GradSampleModule

torch.manual_seed(0)
for layer, x in LAYERS:
    wrapped = GradSampleModule(layer, loss_reduction="sum")
    wrapped(x).square().sum().backward()
    together = [p.grad_sample for p in layer.parameters()]
    wrapped.to_standard_module()
    for row, example in enumerate(x.split(1)):
        gradients = torch.autograd.grad(layer(example).square().sum(), list(layer.parameters()))
        for samples, gradient in zip(together, gradients, strict=True):
            assert torch.allclose(samples[row], gradient, atol=1e-4), layer
print(*sorted({"scipy", "opacus.accountants", "opacus.privacy_engine"} & sys.modules.keys()))
"""
    layers = ", ".join(f"({layer}, {x})" for layer, x in LAYERS)
    assert not alone(code.replace("LAYERS", f"[{layers}]"))


def test_opacus_gives_the_rest_of_itself_to_whoever_asks() -> None:
    code = """
import sys
from fleet.privacy.per_example import GradSampleModule
import opacus
assert not hasattr(opacus, "__wrapped__")  # whoever goes through all modules asks for such things
assert "scipy" not in sys.modules
from opacus import PrivacyEngine
from opacus.accountants import RDPAccountant
assert opacus.PrivacyEngine is PrivacyEngine
assert opacus.GradSampleModule is GradSampleModule
assert not hasattr(opacus, "nothing")
from opacus import *
print(opacus.__version__)
"""
    assert alone(code)[0].isdigit()


def test_whoever_asks_again_for_what_cannot_be_imported_is_told_why_again() -> None:
    code = """
import sys
sys.modules["scipy"] = None
import fleet.privacy.per_example
for _ in range(2):
    try:
        from opacus import PrivacyEngine
    except ImportError as error:
        print(error.name)
"""
    assert alone(code).split() == ["scipy", "scipy"]


def test_opacus_is_taken_as_it_is_where_somebody_has_imported_it() -> None:
    code = """
import warnings
warnings.simplefilter("ignore")
import opacus
from fleet.privacy.per_example import GradSampleModule
print(opacus.GradSampleModule is GradSampleModule)
"""
    assert alone(code) == "True"


def test_without_opacus_the_import_fails_as_any_would() -> None:
    code = """
import sys
sys.modules["opacus"] = None
try:
    import fleet.privacy.per_example
except ImportError as error:
    print(error.name)
"""
    assert alone(code).startswith("opacus")
