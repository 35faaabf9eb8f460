"""Opacus' gradients per example, without Opacus' front page: that imports accountants, and they all of scipy.

Neither is needed here, and they would cost every process that learns 1.3 s and 70 MB. Whoever does ask for something
on the front page (a task of one's own may) is given it: it is run then.
"""

import sys
import warnings
from importlib.util import find_spec, module_from_spec
from typing import Any


def _leave_out_the_front_page() -> None:
    spec = find_spec("opacus")
    if spec is None or "opacus" in sys.modules:
        return
    opacus = module_from_spec(spec)

    def attribute(name: str) -> Any:
        """What the front page defines, https://peps.python.org/pep-0562/."""
        if spec.loader is None or (name.startswith("__") and name not in ("__all__", "__version__")):
            raise AttributeError(f"module 'opacus' has no attribute {name!r}")
        del vars(opacus)["__getattr__"]
        try:
            spec.loader.exec_module(opacus)
        except BaseException:
            vars(opacus)["__getattr__"] = attribute  # whoever asks again is told why again
            raise
        return getattr(opacus, name)

    vars(opacus)["__getattr__"] = attribute
    sys.modules["opacus"] = opacus


_leave_out_the_front_page()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Opacus warns about its own optional parts on import
    import torch.distributed.fsdp  # noqa: F401 - convolutions look for its classes, and the front page would bring them
    from opacus.grad_sample import GradSampleModule
    from opacus.utils.module_utils import trainable_modules
    from opacus.validators import ModuleValidator

__all__ = ["GradSampleModule", "ModuleValidator", "trainable_modules"]
