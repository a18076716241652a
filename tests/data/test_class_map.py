"""A class map says what it is about, or the command says which line is wrong and what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from cxr_mlflow.data.class_map import load_class_map, same_names
from cxr_mlflow.errors import InputError

FOLDERS = ("bacterial", "healthy", "no", "viral")
CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")


def read(tmp_path: Path, text: str) -> dict[str, str | None]:
    path = tmp_path / "map.yaml"
    path.write_text(text, encoding="utf-8")
    return load_class_map(path, FOLDERS, CLASSES)


def test_several_folders_may_stand_for_one_class_and_null_leaves_one_out(tmp_path):
    told = "# ours\nviral: viral pneumonia\nbacterial: Lung_Opacity\nno: ~\nHealthy: 'Normal'\n"
    assert read(tmp_path, told) == {
        "bacterial": "Lung_Opacity",
        "healthy": "Normal",
        "no": None,
        "viral": "Viral Pneumonia",
    }
    assert list(read(tmp_path, told)) == list(FOLDERS), "in the order of the folders"


REST = "healthy: Normal\nno: null\nviral: COVID\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bacterail: Normal\n" + REST, r"line 1: the data have no class 'bacterail'; did you mean"),
        (REST + "bacterial: Opacities\n", r"line 4: the model has no class 'Opacities'.*null leav"),
        (REST + "bacterial: COVID\nHEALTHY: COVID\n", r"line 5: 'HEALTHY' stands on line 1 alrea"),
        (REST, r"nothing is said about 'bacterial'; add a line 'bacterial: ' with one of COVID"),
        ("bacterial:\nhealthy:\nno:\nviral:\n", r"every class is null"),
        ("- bacterial\n- healthy\n", r"holds no class map; write one line"),
        ("", r"holds no class map; write one line"),
        (REST + "bacterial: [COVID]\n", r"line 4: one name for one name"),
        ("bacterial: {healthy\n", r"not YAML"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(tmp_path, text, told):
    with pytest.raises(InputError, match=told) as error:
        read(tmp_path, text)
    assert str(tmp_path / "map.yaml") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"--class-map=.*gone\.yaml: cannot be read"):
        load_class_map(tmp_path / "gone.yaml", FOLDERS, CLASSES)


def test_without_a_map_names_are_compared_as_slugs():
    assert same_names(("normal", "viral-pneumonia"), CLASSES) == {
        "normal": "Normal",
        "viral-pneumonia": "Viral Pneumonia",
    }
    with pytest.raises(InputError, match=r"the data have tb as well.*--class-map FILE.*'tb: "):
        same_names(("normal", "tb"), CLASSES)
