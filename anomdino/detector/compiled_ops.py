"""What stands in for mmcv's compiled operators where only ``mmcv-lite`` is installed.

mmdet imports ``mmcv.ops``, which imports the compiled module ``mmcv._ext``. ``mmcv-lite`` has none. MM-Grounding-DINO
needs a single operator of it, multi-scale deformable attention, which :mod:`anomdino.detector.deformable_attention`
computes in plain torch on every device. :func:`provide_compiled_ops` registers a module of that name before mmdet is
imported; where the compiled mmcv is installed, it is left alone.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any, NoReturn

from anomdino.errors import BackendMissing

EXTENSION = "mmcv._ext"


class MissingOperator:
    """An operator of compiled mmcv that is not provided: it can be imported and named, not called."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse.

        Raises:
            BackendMissing: Always; the message names the operator and the cure.
        """
        raise BackendMissing(
            f"mmcv operator '{self.name}'",
            "needs the compiled mmcv, and only mmcv-lite is installed",
            "build it: pip uninstall mmcv-lite && pip install 'setuptools<81' wheel ninja psutil && "
            "pip install --no-build-isolation mmcv==2.1.0",
        )


class SubstituteExtension(ModuleType):
    """The module ``mmcv._ext`` made of :class:`MissingOperator` for every name that is asked for."""

    def __init__(self) -> None:
        super().__init__(
            EXTENSION, "Substitute of mmcv's compiled operators (anomdino.detector.compiled_ops)."
        )
        self.__spec__ = importlib.machinery.ModuleSpec(
            EXTENSION, loader=None, origin="anomdino.detector.compiled_ops"
        )
        self.__file__ = __file__

    def __getattr__(self, name: str) -> MissingOperator:
        if name.startswith("__"):
            raise AttributeError(name)
        return MissingOperator(name)


def compiled_mmcv_installed() -> bool:
    """Say whether the real compiled module ``mmcv._ext`` can be imported."""
    loaded = sys.modules.get(EXTENSION)
    if loaded is not None:
        return not isinstance(loaded, SubstituteExtension)
    return importlib.util.find_spec(EXTENSION) is not None


def provide_compiled_ops() -> None:
    """Make ``import mmdet.models`` work: register the substitute and route deformable attention to plain torch.

    Safe to call again. Does nothing to the operators where the compiled mmcv is installed.

    Raises:
        BackendMissing: mmdet or mmcv is not installed.
    """
    for package in ("mmcv", "mmengine", "mmdet", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise BackendMissing(
                package, "is not installed, the detector needs it", "pip install 'anomdino[detector]'"
            )
    if compiled_mmcv_installed():
        return
    if EXTENSION not in sys.modules:
        substitute = SubstituteExtension()
        import mmcv

        sys.modules[EXTENSION] = substitute
        mmcv._ext = substitute
    from mmcv.ops import multi_scale_deform_attn as attention

    from anomdino.detector.deformable_attention import deformable_attention

    if attention.multi_scale_deformable_attn_pytorch is not deformable_attention:
        attention.plain_multi_scale_deformable_attn = attention.multi_scale_deformable_attn_pytorch
    attention.IS_CUDA_AVAILABLE = False
    attention.multi_scale_deformable_attn_pytorch = deformable_attention
