"""demo.py leaves out what cannot be read, and names it."""

import pytest
from helpers import ROOT
from PIL import Image


def test_damaged_images_are_left_out(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "tools" / "visualization"))
    from demo import readable

    whole, cut, text = (tmp_path / name for name in ("whole.jpg", "cut.jpg", "text.jpg"))
    Image.effect_noise((64, 64), 50).save(whole)
    cut.write_bytes(whole.read_bytes()[:-500])
    text.write_text("no image")
    assert readable([cut, whole, text]) == [whole]
    printed = capsys.readouterr().err
    assert str(cut) in printed
    assert str(text) in printed
    assert str(whole) not in printed
    with pytest.raises(SystemExit, match="none of the images"):
        readable([cut, text])
