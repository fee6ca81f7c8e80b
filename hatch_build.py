"""Builds the kernels while the package is built. Without a compiler the package is complete, and slower."""

from __future__ import annotations

import importlib.util
import platform
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelBuildHook(BuildHookInterface[Any]):
    """Compiles native/ into the wheel; the wheel is then for this platform, and still for every Python."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        spec = importlib.util.spec_from_file_location(
            "vitrail_native_build", Path(self.root) / "native" / "build.py"
        )
        if spec is None or spec.loader is None:
            return
        native = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(native)
        library = native.build_if_possible()
        build_data["artifacts"].append("src/vitrail/ops/_kernels/*")
        if library is None:
            sys.stderr.write("Vitrail was built without its kernels; `vitrail info --system` says why.\n")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform()}"


def _platform() -> str:
    """The tag of this platform. A Python for two kinds of Mac still compiled for this one alone."""
    named = sysconfig.get_platform().replace("universal2", platform.machine())
    return named.replace("-", "_").replace(".", "_")
