"""What is refused before anything is unpacked."""

import pytest

from histodistill.training.data.limits import check_growth, check_memory, check_picture
from histodistill.training.running.errors import InputError


def test_picture_of_a_slide_is_refused_and_the_limit_can_be_raised(monkeypatch):
    check_picture("a.png", 4096, 4096)
    with pytest.raises(InputError, match=r"a.png is 13000x13000 pixels: .* HISTODISTILL_MAX_PIXELS to 169000000"):
        check_picture("a.png", 13_000, 13_000)
    monkeypatch.setenv("HISTODISTILL_MAX_PIXELS", "169000000")
    check_picture("a.png", 13_000, 13_000)
    with pytest.raises(InputError, match="13001x13000"):
        check_picture("a.png", 13_001, 13_000)


def test_growth_is_refused_and_the_limit_can_be_raised(monkeypatch):
    check_growth("x.npz", 1, 2**28)  # nobody minds so little
    check_growth("medmnist.npz", 12 * 10**9, 17 * 10**9)
    with pytest.raises(
        InputError, match=r"x.npz has 13.0 MB and unpacks to 3.0 GB: .* HISTODISTILL_MAX_GROWTH to 231"
    ):
        check_growth("x.npz", 13 * 10**6, 3 * 10**9)
    monkeypatch.setenv("HISTODISTILL_MAX_GROWTH", "231")
    check_growth("x.npz", 13 * 10**6, 3 * 10**9)


def test_what_does_not_fit_in_memory_is_told():
    check_memory("x.npz", 1000)
    with pytest.raises(InputError, match=r"x.npz needs 1000000.0 GB of memory and .* GB are free"):
        check_memory("x.npz", 10**15)


@pytest.mark.parametrize("value", ["0", "-1", "many", "1e9", "²"])
def test_limit_that_is_none(monkeypatch, value):
    monkeypatch.setenv("HISTODISTILL_MAX_PIXELS", value)
    with pytest.raises(InputError, match=f"HISTODISTILL_MAX_PIXELS={value} is no limit"):
        check_picture("a.png", 1, 1)
