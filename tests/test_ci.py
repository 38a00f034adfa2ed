"""What decides whether work lands runs as on a bare machine."""

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BARE = str(ROOT / ".ci" / "bare")


def test_ci_runs_bare_and_installs_by_pip_alone():
    script = (ROOT / ".ci" / "run").read_text()
    assert not re.search(r"\b(apt|apt-get|conda|brew)\b", script)
    assert script.index("exec .ci/bare") < script.index("python3 -m venv")
    assert "/usr/share/wordnet" in script and "/usr/share/nltk_data" in script


def test_a_bare_home_is_empty_and_gone_at_the_end(tmp_path):
    (tmp_path / ".config" / "pip").mkdir(parents=True)
    (tmp_path / ".config" / "pip" / "pip.conf").write_text("[global]\n")
    (tmp_path / ".cache").mkdir()
    given = {
        "HOME": str(tmp_path),
        "NLTK_DATA": "/x",
        "WINNOW_CACHE_DIR": "/x",
        "WINNOW_ASSETS_DIR": "/x",
        "HF_HOME": "/x",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "XDG_"))}
    show = 'ls -A "$HOME"; env; exit 7'
    result = subprocess.run([BARE, "bash", "-c", show], env={**kept, **given}, capture_output=True, text=True)
    assert result.returncode == 7  # the command's own
    found = dict(line.split("=", 1) for line in result.stdout.splitlines() if "=" in line)
    assert result.stdout.splitlines()[0].count("=")  # nothing was listed before the environment
    assert not Path(found["HOME"]).exists() and found["HOME"] != str(tmp_path)
    assert not (set(given) - {"HOME"}) & set(found)
    assert found["PIP_CACHE_DIR"] == str(tmp_path / ".cache" / "pip")  # so that nothing is downloaded again
    assert found["PIP_CONFIG_FILE"] == str(tmp_path / ".config" / "pip" / "pip.conf")


def test_a_folder_is_hidden_from_the_command_alone_or_the_command_is_not_run(tmp_path):
    """Where the user may not mount, nothing runs."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "index.noun").write_text("")
    command = [BARE, f"--hide={folder}", "--hide=/nowhere", "bash", "-c", f'echo ran; ls -A "{folder}"; exit 3']
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode == 3:
        assert result.stdout == "ran\n"
    else:
        assert result.returncode == 1 and result.stdout == "" and f"{folder} cannot be hidden" in result.stderr
    assert [path.name for path in folder.iterdir()] == ["index.noun"]
