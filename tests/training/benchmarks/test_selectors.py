from __future__ import annotations

import pytest

from histodistill.training.benchmarks import selectors as script
from histodistill.training.benchmarks.selectors import SelectorsConfig, measure, run
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import read_json


CONFIG = SelectorsConfig(selectors=("random", "kernel_ridge"), classes=2, sizes=(20, 40), dimensions=4, n_per_class=3)


def test_a_row_for_each_selector_and_size(tmp_path, capsys):
    from dataclasses import replace

    config = replace(CONFIG, selectors=("kernel_herding",), sizes=(30,), output=tmp_path / "figures.json")
    (row,) = rows = run(config)
    assert (row["selector"], row["classes"], row["size"]) == ("kernel_herding", 2, 30)
    assert 0 < row["seconds"] < 60 and row["processor_seconds"] > 0 and row["peak_memory"] > 10**7
    assert read_json(tmp_path / "figures.json") == rows
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split() == ["selector", "images", "seconds", "of", "processor", "memory"]
    assert line.split()[:4] == ["kernel_herding", "2", "×", "30"] and line.endswith(" MB")


@pytest.mark.parametrize("selector", CONFIG.selectors)
def test_it_measures_what_selectors_do(selector, monkeypatch):
    from histodistill.selection import SELECTORS

    fitted = []
    fit = SELECTORS[selector].fit
    monkeypatch.setattr(
        SELECTORS[selector], "fit", lambda self, *data: fitted.append((self, data)) or fit(self, *data)
    )
    measure(CONFIG, selector, 40)
    warming, measured = fitted
    assert warming[0].n_per_class == 1
    assert measured[0].n_per_class == 3 and measured[1][0].shape == (80, 4) and len(measured[0].selected_indices_) == 6


def test_too_few_images_are_one_sentence(capsys, run_main):
    with pytest.raises(InputError, match="class 0 has 20 images but n_per_class=30"):
        measure(SelectorsConfig(n_per_class=30, classes=1, dimensions=2), "random", 20)
    with pytest.raises(SystemExit):
        run_main(script, "--selectors", "best")
    assert "--selectors" in capsys.readouterr().err
