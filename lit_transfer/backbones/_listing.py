"""Which backbones there are."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from lit_transfer.backbones._torchvision import list_names


@dataclass(frozen=True)
class BackboneInfo:
    name: str


def list_backbones(pattern: str = "*") -> list[str]:
    return [name for name in list_names() if fnmatchcase(name, pattern)]


def describe_backbones(pattern: str = "*") -> list[BackboneInfo]:
    return [BackboneInfo(name) for name in list_backbones(pattern)]
