"""mamba-ssm's interface on these kernels, so that models written for it run with another import line, on the CPU too:

    from dnamamba_kernels.compat import Mamba              # mamba_ssm.Mamba
    from dnamamba_kernels.compat import selective_scan_fn  # mamba_ssm.ops.selective_scan_interface.selective_scan_fn

`install` leaves their import lines as they are.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from dnamamba_kernels.compat.mamba import Mamba
from dnamamba_kernels.compat.scan import selective_scan_fn

__all__ = ["Mamba", "install", "selective_scan_fn"]

_MODULES: dict[str, dict[str, Any]] = {
    "mamba_ssm": {"Mamba": Mamba},
    "mamba_ssm.modules": {},
    "mamba_ssm.modules.mamba_simple": {"Mamba": Mamba},
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.selective_scan_interface": {"selective_scan_fn": selective_scan_fn},
}
"""mamba-ssm's modules, a package before what is in it → what they hold here."""


def install() -> None:
    """Register `Mamba` and `selective_scan_fn` under mamba-ssm's import names, where mamba-ssm itself is absent.

    Raises:
        RuntimeError: mamba-ssm is installed; this does not shadow it.
    """
    if getattr(sys.modules.get("mamba_ssm"), "Mamba", None) is Mamba:
        return
    if "mamba_ssm" in sys.modules or importlib.util.find_spec("mamba_ssm") is not None:
        raise RuntimeError("mamba_ssm is installed: uninstall it, or import from dnamamba_kernels.compat")
    for name, held in _MODULES.items():
        module = ModuleType(name)
        is_package = any(other.startswith(f"{name}.") for other in _MODULES)
        module.__spec__ = ModuleSpec(name, None, is_package=is_package)  # importlib.util.find_spec finds it
        if is_package:
            module.__path__ = []
        vars(module).update(held)
        sys.modules[name] = module
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)
