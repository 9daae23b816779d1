"""The colours of the classes as a QGIS style (.qml), which QGIS applies to a layer of the same name beside it."""

from __future__ import annotations

import posixpath
import re
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from segray.masks import Classes

NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, production 2


def style_of(path: str) -> str:
    """The path or URI of a file's style: its own, with another ending."""
    return posixpath.splitext(path)[0] + ".qml"


def names_in_xml(classes: Classes) -> list[str]:
    """The names of the classes; characters that XML cannot hold, such as most control characters, become U+FFFD."""
    return [NOT_IN_XML.sub("\ufffd", name) for name in classes.names]


def qml(classes: Classes) -> bytes:
    """A style for rasters and for polygons, since those of a scene share a name: QGIS takes the part that fits a layer.

    Masks are drawn by their values, polygons by `class_id`, without outlines: those of small regions would cover them.
    """
    root = Element("qgis", version="3.22", styleCategories="Symbology")
    SubElement(root, "layerGeometryType").text = "2"  # polygons
    _of_rasters(SubElement(root, "pipe"), classes)
    _of_polygons(SubElement(root, "renderer-v2", type="categorizedSymbol", attr="class_id"), classes)
    indent(root, " ")
    return b"<!DOCTYPE qgis>\n" + tostring(root, encoding="utf-8") + b"\n"


def _of_rasters(pipe: Element, classes: Classes) -> None:
    renderer = SubElement(pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1")
    entries = SubElement(renderer, "colorPalette")
    for index, (name, color) in enumerate(zip(names_in_xml(classes), classes.colors)):
        hexadecimal = "#{:02x}{:02x}{:02x}".format(*color)
        SubElement(entries, "paletteEntry", value=str(index), label=name, color=hexadecimal, alpha="255")


def _of_polygons(renderer: Element, classes: Classes) -> None:
    categories, symbols = SubElement(renderer, "categories"), SubElement(renderer, "symbols")
    for index, (name, color) in enumerate(zip(names_in_xml(classes), classes.colors)):
        key = str(index)
        SubElement(categories, "category", symbol=key, value=key, type="long", label=name, render="true")
        symbol = SubElement(symbols, "symbol", type="fill", name=key)
        options = SubElement(SubElement(symbol, "layer", attrib={"class": "SimpleFill"}), "Option", type="Map")
        fill = ",".join(map(str, (*color, 255)))
        for option, value in (("color", fill), ("style", "solid"), ("outline_style", "no")):
            SubElement(options, "Option", name=option, value=value, type="QString")
