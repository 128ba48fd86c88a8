"""Every code block in the README, CONTRIBUTING and docs/ runs, or the page's test fails.

python      runs, in page order, in one namespace and one temporary directory a page
bash        line by line: `hdcrf` and `python` run in that directory, `python benchmarks/...` only with
            `--help`; `pip install`, `make`, `git clone` and `cd` are checked without being run
toml, json  parses
text        output to read
"""

import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt
from mdit_py_plugins.admon import admon_plugin
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from hdcrf.commands.main import commands

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGES = [
    *(page for name in ("README.md", "CONTRIBUTING.md") if (page := ROOT / name).exists()),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PIP_OPTIONS_WITH_VALUE = {"-i", "--index-url", "--extra-index-url", "-f", "--find-links"}


class BlockError(Exception):
    """A code block that does not run, or that nothing checks."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page(page, tmp_path, monkeypatch):
    run_page(page, tmp_path, monkeypatch)


BROKEN = {
    "raises": "```python\n1 / 0\n```",
    "raises in a note": "!!! note\n\n    ```python\n    1 / 0\n    ```",
    "raises in a list": "- item\n\n    ```python\n    1 / 0\n    ```",
    "syntax": "```python\n1 +\n```",
    "no language": "```\nx\n```",
    "other language": "```sh\nmake test\n```",
    "indented": "Text.\n\n    x = 1\n",
    "toml": "```toml\nx = \n```",
    "json": '```json\n{"x": }\n```',
    "python fails": '```bash\npython -c "raise SystemExit(3)"\n```',
    "hdcrf fails": "```bash\nhdcrf no-such-command \\\n    --no-such-option\n```",
    "no such benchmark": "```bash\npython benchmarks/no_such.py\n```",
    "no such demo": "```bash\npython demos/no_such.py\n```",
    "no such target": "```bash\nmake no-such-target\n```",
    "a folder, not a target": "```bash\nmake tests\n```",
    "no such extra": '```bash\npip install "hdcrf[no-such-extra]"\n```',
    "no such local extra": "```bash\npip install -e .[no-such-extra]\n```",
    "no such version": "```bash\npip install hdcrf==0.0.0\n```",
    "unrelated requirement": "```bash\npython -m pip install no-such-thing\n```",
    "nothing to install": "```bash\npip install\n```",
    "not covered": "```bash\nrm -rf build\n```",
    "shell syntax": "```bash\npython -c 'print(1)' | cat\n```",
    "unclosed quote": "```bash\npython -c 'print(1)\n```",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_broken_page_fails(text, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises((BlockError, ArithmeticError, SyntaxError, ValueError)):
        run_page(page, tmp_path, monkeypatch)


def test_sound_page_passes(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nopen('x', 'w').close()\nx = 1\n```\n```python\nassert x == 1\n```\n"
        "```bash\n# comment\npython \\\n    -c 'open(\"x\")'\ncd x && make check test\n"
        "pip install torch --index-url https://x.org 'hdcrf[images]>=0.1' -e '.[dev]'\ngit clone x\n```\n"
        "```toml\nx = 1\n```\n```json\n{}\n```\n```text\nx\n```\n"
    )
    run_page(page, tmp_path, monkeypatch)


def run_page(page, directory, monkeypatch):
    monkeypatch.chdir(directory)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    namespace = {"__name__": "__main__"}
    for token in MarkdownIt().use(admon_plugin).parse(page.read_text(encoding="utf-8")):
        if token.type not in ("fence", "code_block"):
            continue
        first_line = token.map[0] + 1
        place = f"{page}:{first_line}"
        language = token.info.split()[0] if token.info.strip() else ""
        if language == "python":
            # Blank lines in front: a traceback then shows the line of the page.
            exec(compile("\n" * first_line + token.content, page, "exec"), namespace)
        elif language == "bash":
            for line in token.content.replace("\\\n", " ").splitlines():
                run_bash_line(line, place)
        elif language == "toml":
            tomllib.loads(token.content)
        elif language == "json":
            json.loads(token.content)
        elif language != "text":
            kind = f"the language {language!r}" if token.type == "fence" else "indented, without a fence"
            raise BlockError(f"{place}: not covered: a block of {kind}; see the top of {Path(__file__).name}")


def run_bash_line(line, place):
    for command in split_commands(line, place):
        match command:
            case ["hdcrf", *arguments]:
                run_hdcrf(place, arguments)
            case ["pip", "install", *arguments] | ["python", "-m", "pip", "install", *arguments]:
                check_pip_install(arguments, place)
            case ["python", script, *_] if script.startswith("benchmarks/"):
                run_help(place, ROOT / script)
            case ["python", script, *arguments] if script.startswith("demos/"):
                run(place, sys.executable, ROOT / script, *arguments)
            case ["python", *arguments]:
                run(place, sys.executable, *arguments)
            case ["make", *arguments]:
                if "Nothing to be done" in run(place, "make", "-n", "-C", ROOT, *arguments):
                    raise BlockError(f"{place}: `{line}` names a file, not a target")
            case ["git", "clone", *_] | ["cd", _]:
                pass
            case _:
                raise BlockError(f"{place}: not covered: `{line}`; see the top of {Path(__file__).name}")


def split_commands(line, place):
    """Split at `&&` and into words; any other shell syntax is not covered."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    commands = [[]]
    try:
        for word in words:
            if word == "&&":
                commands.append([])
            elif re.fullmatch(r"[&|;()<>]+", word):
                raise BlockError(f"{place}: not covered: `{word}` in `{line}`")
            else:
                commands[-1].append(word)
    except ValueError as error:
        raise BlockError(f"{place}: `{line}`: {error}") from error
    return [command for command in commands if command]


def run_hdcrf(place, arguments):
    """Run the command line in this process, since to start one for each line would take minutes."""
    result = CliRunner().invoke(commands, arguments, prog_name="hdcrf")
    if result.exit_code:
        shown = shlex.join(["hdcrf", *arguments])
        raise BlockError(f"{place}: exit status {result.exit_code} from `{shown}`\n{result.output}")


def run_help(place, script):
    """Let a script print its help in this process, as it would if it were run by itself."""
    if not script.is_file():
        raise BlockError(f"{place}: there is no {script}")
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(io.StringIO()) as output:
        patched.setattr(sys, "argv", [str(script), "--help"])
        patched.syspath_prepend(script.parent)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
    if ended.value.code or "usage: " not in output.getvalue():
        raise BlockError(f"{place}: exit status {ended.value.code} from `{script} --help`")


def run(place, *command):
    """Run a command with the language and the make flags of whoever called us left out; return its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    result = subprocess.run(
        [str(word) for word in command],
        env=environment | {"LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    if result.returncode:
        shown = shlex.join(str(word) for word in command)
        raise BlockError(f"{place}: exit status {result.returncode} from `{shown}`\n{result.stdout}")
    return result.stdout


def check_pip_install(arguments, place):
    """Check that what is installed is this project, with extras it has, or something that it depends on."""
    project = metadata.metadata("hdcrf")
    extras = set(project.get_all("Provides-Extra", []))
    known = {"hdcrf"} | {canonicalize_name(Requirement(text).name) for text in metadata.requires("hdcrf")}
    words, requirements = iter(arguments), []
    for word in words:
        if word in PIP_OPTIONS_WITH_VALUE:
            next(words, None)
        elif not word.startswith("-"):
            requirements.append(re.sub(r"^\.(?=\[|$)", "hdcrf", word))  # `.` and `.[extra]`: this project
    if not requirements:
        raise BlockError(f"{place}: `pip install` of nothing")
    for text in requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise BlockError(f"{place}: not covered: `pip install {text}`: {error}") from error
        name = canonicalize_name(requirement.name)
        if name not in known:
            raise BlockError(f"{place}: `{text}` is neither hdcrf nor something it depends on")
        if name != "hdcrf":
            continue
        if unknown := requirement.extras - extras:
            raise BlockError(f"{place}: hdcrf has no extra {sorted(unknown)}; it has {sorted(extras)}")
        if not requirement.specifier.contains(project["Version"], prereleases=True):
            raise BlockError(f"{place}: `{text}` leaves out this version, {project['Version']}")
