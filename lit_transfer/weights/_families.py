"""Renames of known families of architectures, where a file's names are those of another version or library."""

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Rules (pattern, replacement) that turn one naming into another; the first rule must match some name."""

    name: str
    rules: tuple[tuple[str, str], ...]

    def rename(self, names: dict[str, str]) -> dict[str, str] | None:
        """The renamed names; None if the first rule matches none, or if two names become one."""
        if not any(re.search(self.rules[0][0], name) for name in names):
            return None
        renamed = {}
        for name, original in names.items():
            new = name
            for pattern, replacement in self.rules:
                new = re.sub(pattern, replacement, new)
            renamed[new] = original
        return renamed if len(renamed) == len(names) else None


FAMILIES = (
    Family("DenseNet of before 2018", ((r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2."),)),
    Family(
        "torchvision ViT of before 2022",
        ((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3.")),
    ),
)


def family_names(names: dict[str, str]) -> Iterator[tuple[dict[str, str], str]]:
    """The names as they are, then as each family that applies renames them, with the family's name."""
    yield names, ""
    for family in FAMILIES:
        renamed = family.rename(names)
        if renamed is not None:
            yield renamed, f"renamed as {family.name}"
