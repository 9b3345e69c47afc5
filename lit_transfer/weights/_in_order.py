"""Names that differ throughout where the architecture is the same: parts, or tensors, are paired in their order."""

from collections.abc import Iterator, Mapping

Shapes = Mapping[str, tuple[int, ...]]
Signature = tuple[tuple[str, tuple[int, ...]], ...]


def numbered_children(names: dict[str, str], file: Shapes, model: Shapes) -> Iterator[tuple[dict[str, str], str]]:
    """Names of a file that was saved from `nn.Sequential(*children)` of a named network, or the other way round.

    The children that have tensors are paired in order, as far as their tensors have equal names and shapes; one side
    must be numbered and the other named.

    Args:
        names: Name to match -> name in the file.
        file: Shapes by name to match.
        model: Shapes by name in the model.

    Yields:
        The renamed names, and the edit in words.
    """
    inside_model = _tops(model)
    for theirs, their_children in _tops(file).items():
        for ours, our_children in inside_model.items():
            if _all_digits(their_children) == _all_digits(our_children):
                continue
            pairs = _paired(their_children, our_children)
            if 2 * len(pairs) > len(our_children):
                yield _renamed(names, theirs, ours, pairs), "numbered parts paired in order"


def by_order(names: dict[str, str], file: Shapes, model: Shapes) -> list[tuple[dict[str, str], str]]:
    """All tensors paired in order; nothing where order and shape do not agree, so that a pairing is the only one.

    The last part of each name must agree too, and what either side has more at the end may only be one layer's weight
    and bias: a head.
    """
    theirs = [name for name in file if not _is_counter(name)]
    ours = [name for name in model if not _is_counter(name)]
    same = 0
    for one, other in zip(theirs, ours, strict=False):
        if file[one] != model[other] or _leaf(one) != _leaf(other):
            break
        same += 1
    if not same or max(len(theirs), len(ours)) - same > 2:
        return []
    renamed = {ours[i]: names[theirs[i]] for i in range(same)}
    for i, name in enumerate(theirs[same:]):  # an old head: under the model's name where it has one
        renamed[ours[same + i] if same + i < len(ours) else f"(left over).{name}"] = names[name]
    return [(renamed, "tensors paired in order")]


def _tops(names: Shapes, depth: int = 3) -> dict[str, dict[str, Signature]]:
    """The empty prefix, and each prefix from the front under which most names lie, with what lies below it."""
    prefix, tops = "", {"": _children(names, "")}
    for _ in range(depth):
        children = tops[prefix]
        largest = max(children, key=lambda child: len(children[child]), default=None)
        if largest is None or 2 * len(children[largest]) <= len(names):
            break
        prefix = f"{prefix}.{largest}" if prefix else largest
        tops[prefix] = _children(names, prefix)
    return tops


def _children(names: Shapes, prefix: str) -> dict[str, Signature]:
    """First segment below the prefix -> the tensors below it, by relative name and shape; counters left out."""
    found: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    start = len(prefix) + 1 if prefix else 0
    for name, shape in names.items():
        if (not prefix or name.startswith(prefix + ".")) and not _is_counter(name):
            child, _, rest = name[start:].partition(".")
            found.setdefault(child, []).append((rest, shape))
    return {child: tuple(sorted(tensors)) for child, tensors in found.items()}


def _paired(theirs: dict[str, Signature], ours: dict[str, Signature]) -> dict[str, str]:
    pairs = {}
    for (one, tensors), (other, expected) in zip(theirs.items(), ours.items(), strict=False):
        if tensors != expected:
            break
        pairs[one] = other
    return pairs


def _renamed(names: dict[str, str], theirs: str, ours: str, pairs: dict[str, str]) -> dict[str, str]:
    renamed = {}
    start = len(theirs) + 1 if theirs else 0
    for name, original in names.items():
        child, _, rest = name[start:].partition(".")
        inside = (not theirs or name.startswith(theirs + ".")) and child in pairs
        new = ".".join(piece for piece in (ours, pairs[child], rest) if piece) if inside else name
        renamed[new] = original
    return renamed if len(renamed) == len(names) else names


def _all_digits(children: dict[str, Signature]) -> bool:
    return all(child.isdigit() for child in children)


def _is_counter(name: str) -> bool:
    return _leaf(name) == "num_batches_tracked"


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
