"""Notes to the user."""

from multiprocessing import get_context

from histodistill.training.running.notes import tell, warn


def test_notes_go_to_standard_error_of_one_process(capsys, monkeypatch):
    tell("14 tiles")
    warn("2 were left out")
    monkeypatch.setenv("RANK", "1")
    tell("14 tiles")
    out, err = capsys.readouterr()
    assert out == "" and err == "14 tiles\nwarning: 2 were left out\n"


def test_workers_of_a_command_say_nothing(capfd):
    with get_context("spawn").Pool(1) as pool:
        pool.apply(tell, ["14 tiles"])
    assert capfd.readouterr().err == ""
