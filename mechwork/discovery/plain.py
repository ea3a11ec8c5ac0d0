"""Strict JSON from any values."""

from __future__ import annotations

import json
import math
from typing import Any

from ..harmless import visible_json


def dump_json(data: Any) -> str:
    """Strict JSON: numbers that JSON cannot hold become null, letters that do not print their escapes."""
    return visible_json(json.dumps(plain(data), indent=1, ensure_ascii=False, allow_nan=False, default=str))


def plain(value: Any) -> Any:
    """The value with null for numbers that JSON cannot hold, text keys, and lists for tuples."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
