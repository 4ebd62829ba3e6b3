from __future__ import annotations

import pytest

from histodistill.training.data.audit_tiles import audit_share_of
from histodistill.training.running.errors import InputError
from histodistill.training.running.files import write_json


@pytest.mark.parametrize(("settings", "share"), [({}, 0.0), ({"audit_share": 0.1}, 0.1)])
def test_the_share_is_that_of_the_run(settings, share, tmp_path):
    assert audit_share_of(tmp_path) == 0.0
    for record in ({"settings": settings}, {"format": 1, "settings": settings}):
        write_json(tmp_path / "run.json", record)
        assert audit_share_of(tmp_path) == share


def test_a_record_of_a_later_format_is_refused(tmp_path):
    write_json(tmp_path / "run.json", {"format": 2, "settings": {}})
    with pytest.raises(InputError, match=r"run\.json has the format 2, .* install the version that made it"):
        audit_share_of(tmp_path)


@pytest.mark.parametrize(
    "settings", [None, [], "x", {"audit_share": "0.1"}, {"audit_share": None}, {"audit_share": 1}]
)
def test_a_record_that_does_not_say_it(tmp_path, settings):
    write_json(tmp_path / "run.json", {"format": 1, "settings": settings})
    with pytest.raises(InputError, match=r"run\.json does not say which share of the tiles was held out: give "):
        audit_share_of(tmp_path)
