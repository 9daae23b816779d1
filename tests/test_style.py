"""QGIS styles: every class with its name and colour, for masks and for polygons."""

from __future__ import annotations

from xml.etree import ElementTree

from segray.exports.cog import name_classes
from segray.exports.style import qml, style_of
from segray.masks import Classes

CLASSES = Classes(names=("Wald & <Wiese>", "Gebäude", 'a "b"'), colors=((1, 2, 3), (255, 0, 10), (0, 171, 205)))


def test_masks_are_drawn_by_their_values():
    found = ElementTree.fromstring(qml(CLASSES)).findall("pipe/rasterrenderer/colorPalette/paletteEntry")
    assert [(entry.get("value"), entry.get("label"), entry.get("color")) for entry in found] == [
        ("0", "Wald & <Wiese>", "#010203"), ("1", "Gebäude", "#ff000a"), ("2", 'a "b"', "#00abcd"),
    ]  # fmt: skip


def test_polygons_are_filled_by_class_id():
    renderer = ElementTree.fromstring(qml(CLASSES)).find("renderer-v2")
    assert renderer.get("attr") == "class_id"
    symbols = {
        symbol.get("name"): symbol.find("layer/Option/Option[@name='color']").get("value")
        for symbol in renderer.findall("symbols/symbol")
    }
    found = [
        (entry.get("value"), entry.get("label"), symbols[entry.get("symbol")])
        for entry in renderer.findall("categories/category")
    ]
    assert found == [
        ("0", "Wald & <Wiese>", "1,2,3,255"), ("1", "Gebäude", "255,0,10,255"), ("2", 'a "b"', "0,171,205,255"),
    ]  # fmt: skip


def test_a_style_has_the_name_of_its_layer():
    assert style_of("s3://bucket/a.b/north.png.parquet") == "s3://bucket/a.b/north.png.qml"


def test_names_with_characters_that_xml_lacks_leave_the_rest_of_a_file_readable(tmp_path):
    classes = Classes(names=("a\x0bb", "\ufffe", "é\t\U0001f332"), colors=CLASSES.colors)
    name_classes(str(tmp_path / "a.aux.xml"), classes)
    labels = [entry.get("label") for entry in ElementTree.fromstring(qml(classes)).iter("paletteEntry")]
    assert labels == ["a\ufffdb", "\ufffd", "é\t\U0001f332"]
    assert [entry.text for entry in ElementTree.parse(tmp_path / "a.aux.xml").iter("Category")] == labels
