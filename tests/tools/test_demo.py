"""demo.py leaves out what cannot be read, and names it."""

import pytest
from helpers import ROOT
from PIL import Image


def test_damaged_images_are_left_out(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "visualization"))
    from demo import readable

    complete, cut, text = (tmp_path / name for name in ("complete.jpg", "cut.jpg", "text.jpg"))
    Image.effect_noise((64, 64), 50).save(complete)
    cut.write_bytes(complete.read_bytes()[:-500])
    text.write_text("no image")
    assert readable([cut, complete, text]) == [complete]
    printed = capsys.readouterr().err
    assert str(cut) in printed
    assert str(text) in printed
    assert str(complete) not in printed
    with pytest.raises(SystemExit, match="none of the images"):
        readable([cut, text])
