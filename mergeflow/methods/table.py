"""Every merge method, by the name a recipe calls it. Adding one is a module beside this and a row here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mergeflow.methods.linear import LINEAR
from mergeflow.methods.passthrough import PASSTHROUGH
from mergeflow.methods.schema import Method
from mergeflow.methods.slerp import SLERP
from mergeflow.methods.task_arithmetic import TASK_ARITHMETIC, TASK_VECTOR
from mergeflow.methods.ties import TIES

METHODS: Mapping[str, Method] = MappingProxyType(
    {method.name: method for method in (LINEAR, TASK_ARITHMETIC, TIES, SLERP, PASSTHROUGH, TASK_VECTOR)}
)
