"""A plan in a folder: plan.json, and weights.safetensors beside it. Nothing in them is run.

plan.json is written last and has the digest of the other, so that what is read is from one save.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from . import __version__
from .budget import Budget
from .ir import PlanError, SubquadError
from .plan import Option, Plan, SitePlan
from .store import replacing, write

FORMAT = 1
"""Of plan.json; a file of another is refused."""

PLAN, WEIGHTS = "plan.json", "weights.safetensors"


def save(plan: Plan, folder: str | Path) -> Path:
    """Write the two files, each whole or not at all. Raises OSError where they cannot be written."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    held = {name: x.detach().cpu().clone().contiguous() for name, x in plan.tensors.items()}
    with replacing(folder / WEIGHTS) as file:
        save_file(held, file)
        digest = _digest(file)
    data = {"format": FORMAT, "subquad": __version__, "weights": digest, **to_dict(plan)}
    write(folder / PLAN, json.dumps(data, indent=1, allow_nan=False) + "\n")
    return folder


def load(folder: str | Path) -> Plan:
    """The plan that was saved there. Raises PlanError for what is missing, broken, of another version, or not
    from one save."""
    folder = Path(folder)
    data = _read(folder)
    weights = _weights(folder, data.get("weights"))
    try:
        plan = from_dict(data, weights)
    except (KeyError, TypeError, ValueError, AttributeError, SubquadError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise _broken(folder / PLAN, what) from error
    wanted = {name for site in plan.sites for option in site.options for name in option.weights}
    if not wanted <= weights.keys():
        missing = ", ".join(sorted(wanted - weights.keys())[:5])
        raise _broken(folder / WEIGHTS, f"it lacks the tensors {missing}, which options are fitted with")
    return plan


def _read(folder: Path) -> dict[str, Any]:
    path = folder / PLAN
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = "which is no folder" if not folder.is_dir() else f"which has no {PLAN}"
        raise PlanError(f"no plan in {folder}, {there}: pass a folder that plan.save() wrote") from None
    except (OSError, ValueError) as error:
        raise _broken(path, str(error)) from error
    if not isinstance(data, dict) or "format" not in data:
        raise _broken(path, "it is no plan")
    if data["format"] != FORMAT:
        raise PlanError(
            f"{path} has format {data['format']!r}, written by subquad {data.get('subquad', '?')}; this is "
            f"{__version__}, which reads format {FORMAT}\n"
            "    make the plan again, or load it with that version"
        )
    return data


def _weights(folder: Path, digest: Any) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    try:
        found = _digest(path)
        if found != digest:
            raise _broken(path, f"it is not the file that {PLAN} was saved with")
        return load_file(path)
    except FileNotFoundError:
        raise _broken(path, "it is missing") from None
    except (OSError, SafetensorError) as error:
        raise _broken(path, str(error)) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _broken(path: Path, what: str) -> PlanError:
    return PlanError(
        f"{path} cannot be read: {what}\n    copy the whole folder again, or make the plan again"
    )


# ---- as data -----------------------------------------------------------------------------------------


def to_dict(plan: Plan) -> dict[str, Any]:
    """A plan without its tensors, ready for json.dumps; "inf" and "nan" as text, as JSON has neither."""
    return {
        "sites": [_site(site) for site in plan.sites],
        "budget": None if plan.budget is None else plan.budget.to_dict(),
        "lengths": list(plan.lengths),
        "machine": plan.machine,
        "promised": None if plan.promised is None else _plain(plan.promised),
        "measured": None if plan.measured is None else _plain(plan.measured),
        "rest_seconds": _plain(plan.rest_seconds),
        "note": plan.note,
    }


def _site(site: SitePlan) -> dict[str, Any]:
    options = [
        {"recipe": o.recipe, "local": _number(o.local), "errors": _plain(o.errors),
         "seconds": _plain(o.seconds), "bytes": _plain(o.bytes), "crossover": o.crossover,
         "weights": list(o.weights)}
        for o in site.options
    ]  # fmt: skip
    return {
        "path": site.path, "index": site.index, "mask": site.mask, "choice": site.choice,
        "reason": site.reason, "options": options, "refused": dict(site.refused),
    }  # fmt: skip


def _plain(numbers: Mapping[Any, float]) -> dict[str, float | str]:
    return {str(key): _number(x) for key, x in numbers.items()}


def _number(x: float) -> float | str:
    return float(x) if math.isfinite(x) else str(float(x))


def from_dict(data: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Plan:
    """The plan of a `to_dict`, with its tensors. Raises KeyError, TypeError, ValueError or SubquadError for
    what no plan gives."""
    return Plan(
        sites=tuple(map(_site_of, data["sites"])),
        budget=None if data["budget"] is None else Budget.from_dict(data["budget"]),
        lengths=tuple(map(int, data["lengths"])),
        machine=str(data["machine"]),
        promised=None if data["promised"] is None else _errors(data["promised"]),
        measured=None if data["measured"] is None else _errors(data["measured"]),
        rest_seconds=_by_length(data["rest_seconds"]),
        tensors=dict(tensors or {}),
        note=str(data["note"]),
    )


def _site_of(data: Mapping[str, Any]) -> SitePlan:
    options = tuple(
        Option(
            str(o["recipe"]), float(o["local"]), _errors(o["errors"]), _by_length(o["seconds"]),
            _by_length(o["bytes"]), None if o["crossover"] is None else int(o["crossover"]),
            tuple(map(str, o["weights"])),
        )
        for o in data["options"]
    )  # fmt: skip
    refused = {str(recipe): str(why) for recipe, why in data["refused"].items()}
    return SitePlan(
        str(data["path"]), int(data["index"]), str(data["mask"]), options, int(data["choice"]),
        str(data["reason"]), refused,
    )  # fmt: skip


def _errors(numbers: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(x) for name, x in numbers.items()}


def _by_length(numbers: Mapping[str, Any]) -> dict[int, float]:
    return {int(length): float(x) for length, x in numbers.items()}
