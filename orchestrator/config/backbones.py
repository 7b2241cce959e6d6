"""The names that timm knows, from a generated list, so that a typo is found without importing timm.

`python -m orchestrator.config.backbones --write` regenerates `backbones.txt` from the installed timm; a test
keeps the two equal. A name with a dot carries the tag of published weights.
"""

from __future__ import annotations

import argparse
import difflib
from functools import cache
from pathlib import Path

_LIST = Path(__file__).with_name("backbones.txt")


@cache
def known() -> frozenset[str]:
    """Every name, with and without a weights tag."""
    return frozenset(_LIST.read_text(encoding="utf-8").split())


def check(name: str, *, pretrained: bool = False) -> str | None:
    """What is wrong with a backbone name, or None; with `pretrained` it must have published weights."""
    if name not in known():
        close = difflib.get_close_matches(name, known(), n=3)
        nearest = f" Nearest: {', '.join(close)}." if close else " See orchestrator/config/backbones.txt."
        return f"model.backbone must be a name of timm, but got model.backbone={name}.{nearest}"
    if pretrained and "." not in name and not any(other.startswith(f"{name}.") for other in known()):
        return (
            f"model.pretrained=true needs published weights, but timm has none for {name}. "
            "Set model.pretrained=false or another model.backbone."
        )
    return None


def from_timm() -> list[str]:
    """The sorted names of the installed timm."""
    import timm

    return sorted({*timm.list_models(), *timm.list_models(pretrained=True)})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.config.backbones", description=__doc__)
    parser.add_argument("--write", action="store_true", required=True, help="regenerate backbones.txt")
    parser.parse_args()
    names = from_timm()
    _LIST.write_text("\n".join(names) + "\n", encoding="utf-8")
    print(f"{len(names)} names -> {_LIST}")


if __name__ == "__main__":
    main()
