"""From matplotlib's SVG to that of a page: flat, no ids, text as text, colours by name, values as `title` elements."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree

from matplotlib.artist import Artist
from matplotlib.lines import Line2D

__all__ = ["COLORS", "NAMED_COLORS", "SHADES", "SHADE_COLORS", "Mark", "Markup"]

Mark = tuple[str, Artist, Sequence[str | None]]  # kind, artist, what its parts say on hover

# Okabe and Ito (2008), darkened where a line would be too faint on white, and two more.
COLORS = ("#0072b2", "#d55e00", "#00805e", "#b0568b", "#2f95cf", "#b97f00", "#6b6b6b", "#7a4a1e")
SHADES = 40
# Each is a value of its own, so that `markup` can name it, and a page give it another (`--ink: ...`) on a dark screen.
NAMED_COLORS = {
    "--paper": "#ffffff", "--ground": "#fefefe", "--heat-ink": "#fdfdfd", "--heat": "#0b4f8f",
    "--ink": "#1b1c1e", "--tile-ink": "#010101", "--soft": "#5b5f66", "--rule": "#e2e2de",
    **{f"--c{index}": color for index, color in enumerate(COLORS)},
}  # fmt: skip
SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
HALO = {"rule-name": "paint-order: stroke; stroke: #ffffff; stroke-width: 3px; stroke-linejoin: round; "}


def _mixed(share: float) -> str:
    ground, heat = ([int(NAMED_COLORS[name][at : at + 2], 16) for at in (1, 3, 5)] for name in ("--ground", "--heat"))
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(ground, heat, strict=True))


SHADE_COLORS = tuple(_mixed(shade / SHADES) for shade in range(SHADES + 1))
"""From the ground to the strongest colour of a heat map."""


class Markup:
    """An SVG of matplotlib's, made fit for a page.

    Arguments:
        svg: what matplotlib wrote, text as text.
        marks: id -> kind, artist and what its parts say.
        tips: with what they say.
    """

    def __init__(self, svg: str, marks: Mapping[str, Mark], tips: bool) -> None:
        root = ElementTree.fromstring(svg)
        self.marks = marks
        self.tips = tips
        self.root = root
        self.named = {element.attrib["id"]: element for element in root.iter() if "id" in element.attrib}

    def text(self, kind: str, alt: str) -> str:
        """The `svg` element.

        Arguments:
            kind: its classes.
            alt: it in words.
        """
        box = self.root.attrib["viewBox"]
        style = "font-family: var(--sans, sans-serif); background: var(--paper, #ffffff); stroke-linejoin: round"
        svg = ElementTree.Element(
            "svg", {"class": kind, "viewBox": box, "role": "img", "aria-label": alt, "style": style}
        )
        svg.extend(self._flat(self.root))
        if any("clip-path" in element.attrib for element in svg.iter()):  # of what a user drew beside
            clips = ElementTree.SubElement(svg, "defs")
            for clip in self.root.iter(f"{SVG}clipPath"):
                clips.append(self._bare(clip))
        for element in svg.iter():
            element.text = element.text if element.tag in ("text", "title") else None
            element.tail = "\n" if element.tag in ("path", "circle", "text", "g") else None
        return ElementTree.tostring(svg, encoding="unicode", short_empty_elements=True)

    def _flat(self, element: ElementTree.Element) -> Iterator[ElementTree.Element]:
        """What is drawn in an element, in order."""
        for child in element:
            tag = child.tag.removeprefix(SVG)
            if tag in ("defs", "metadata") or "}" in tag:
                continue
            if tag != "g":
                yield self._drawn(child, tag)
            elif child.attrib.get("id", "") in self.marks:
                yield from self._marked(child)
            elif set(child.attrib) <= {"id"}:
                yield from self._flat(child)
            else:
                group = ElementTree.Element("g", {k: v for k, v in child.attrib.items() if k != "id"})
                group.extend(self._flat(child))
                yield group

    def _drawn(self, element: ElementTree.Element, tag: str) -> ElementTree.Element:
        found = self._bare(element)
        if tag == "use":  # of a marker, written once: an id, which another figure of the page may have too
            at = f"translate({found.attrib.pop('x')} {found.attrib.pop('y')})"
            marker = self.named[found.attrib.pop("href").removeprefix("#")].attrib
            found = ElementTree.Element("path", {**marker, **found.attrib, "transform": at})
        attributes = found.attrib
        attributes.pop("id", None)
        if tag == "text":
            attributes["style"] = re.sub(r"\s*font-family: [^;]*;?", "", attributes.get("style", ""))
            if attributes.get("transform", "").startswith("rotate(-0 "):
                del attributes["transform"]
        if "d" in attributes:
            attributes["d"] = _short_path(attributes["d"])
        return _colored(found)

    def _marked(self, element: ElementTree.Element) -> Iterator[ElementTree.Element]:
        kind, artist, tips = self.marks[element.attrib["id"]]
        parts = list(self._flat(element))
        for index, part in enumerate(parts):
            if isinstance(artist, Line2D) and artist.get_marker() == "o":
                x, y = re.findall(r"[-\d.]+", part.attrib["transform"])
                place = {"cx": x, "cy": y, "r": f"{float(artist.get_markersize()) / 2:.2f}"}
                part = ElementTree.Element("circle", {**place, "style": part.attrib["style"]})
            part.set("class", kind)
            part.attrib.pop("clip-path", None)
            if kind in HALO:
                part.set("style", _colored_style(HALO[kind]) + part.attrib["style"])
            if len(tips) == len(parts):
                tip = tips[index]
                if tip is None:
                    continue
                if self.tips:
                    ElementTree.SubElement(part, "title").text = tip
            yield part

    def _bare(self, element: ElementTree.Element) -> ElementTree.Element:
        """A copy without the namespace."""
        attributes = {"href" if name == LINK else name: value for name, value in element.attrib.items()}
        copy = ElementTree.Element(element.tag.removeprefix(SVG), attributes)
        copy.text = element.text
        copy.extend(self._bare(child) for child in element)
        return copy


def _short_path(path: str) -> str:
    """A path of an SVG in hundredths of a point, with straight steps along an axis as `H` and `V`."""
    steps: list[str] = []
    at = ("", "")
    for command, numbers in re.findall(r"([A-Za-z])([^A-Za-z]*)", path):
        places = [f"{float(number):.2f}".rstrip("0").rstrip(".") for number in numbers.split()]
        here = (places[-2], places[-1]) if len(places) > 1 else at
        if command == "L" and here[1] == at[1]:
            steps.append(f"H{here[0]}")
        elif command == "L" and here[0] == at[0]:
            steps.append(f"V{here[1]}")
        else:
            steps.append(command + " ".join(places))
        at = here
    return "".join(steps)


def _colored(element: ElementTree.Element) -> ElementTree.Element:
    if "style" in element.attrib:
        element.set("style", _colored_style(element.attrib["style"]))
    return element


def _colored_style(style: str) -> str:
    return re.sub(r"#[0-9a-f]{6}", lambda found: _BY_COLOR.get(found[0], found[0]), style)


_HEAT, _GROUND = (f"var({name}, {NAMED_COLORS[name]})" for name in ("--heat", "--ground"))
_BY_COLOR = {
    **{c: f"color-mix(in srgb, {_HEAT} {shade / SHADES:.1%}, {_GROUND})" for shade, c in enumerate(SHADE_COLORS)},
    **{color: f"var({name}, {color})" for name, color in NAMED_COLORS.items() if name not in ("--ground", "--heat")},
}  # fmt: skip
