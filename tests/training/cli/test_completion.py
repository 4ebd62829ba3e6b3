from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from histodistill.training import cli
from histodistill.training.cli import completion


pytest.importorskip("shtab")
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "histodistill.bash"
    path.write_text(completion.run(completion.CompletionConfig(shell="bash")))
    return path


def completed(script: Path, *words: str) -> set[str]:
    """What bash offers for the last of the words behind `histodistill`."""
    program = """
        source "$1"; shift
        [[ $(complete -p histodistill) =~ -F\\ ([^ ]+) ]]
        COMP_WORDS=(histodistill "$@"); COMP_CWORD=$#; COMPREPLY=()
        "${BASH_REMATCH[1]}"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    command = ["bash", "-c", program, "bash", script, *words]
    done = subprocess.run(command, cwd=script.parent, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


@needs_bash
def test_bash_takes_the_script(bash_script):
    subprocess.run(["bash", "-n", bash_script], check=True)


@needs_bash
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["gen"], {"generate"}),
        (["publish"], {"publish", "publish-metrics"}),
        (["train", ""], {"autoencoder", "diffusion", "classifier"}),
        (["select", "--sel"], {"--selector"}),
        (["select", "--quota", "prop"], {"proportional"}),
        (["train", "classifier", "--num-p"], {"--num-processes"}),
        (["train", "classifier", "--architecture", "res"], {"resnet18"}),
        (["completion", ""], set(completion.SHELLS)),
        (["compare", "--run"], set()),  # the positional is what is taught
        (["report", "histodistill.ba"], {"histodistill.bash"}),
        (["audit", "--data", "histodistill.ba"], {"histodistill.bash"}),
    ],
)
def test_what_bash_offers(words, offered, bash_script):
    found = completed(bash_script, *words)
    assert found >= offered if words[-1] == "" else found == offered


@needs_bash
def test_every_command_is_offered(bash_script):
    first_words = {name.split()[0] for name in cli.COMMANDS}
    assert first_words <= completed(bash_script, "")


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_shell_knows_every_option(shell, capsys):
    cli.main(["completion", shell])
    script = capsys.readouterr().out
    for name in cli.COMMANDS:
        for option in set(cli.command_parser(name).option_strings()) - {"--run"}:
            assert option.removeprefix("--") in script, f"{name} {option}"
    assert "kernel_herding" in script


def test_another_shell_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["completion", "zs"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: SHELL=zs is unknown (did you mean zsh?): it must be one of bash, zsh, fish\n"
    )
