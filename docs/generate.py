"""Hooks of ``mkdocs build``: fill the generated parts of the reference, and add the pages that are not in docs/.

A line ``<!-- generated: NAME -->`` in a page is replaced by what the function ``NAME`` returns, from the schema, YAML
files, parsers and tables that the command itself uses.
"""

import ast
import contextlib
import inspect
import io
import os
import re
import textwrap
import warnings
from collections import defaultdict
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from hydra import compose, initialize_config_dir
from mkdocs.structure.files import File, Files
from omegaconf import OmegaConf

import runner
from runner.cli.run import COMMANDS, main
from runner.config.composition import register
from runner.core.metrics import as_markdown as metrics  # noqa: F401
from runner.core.paths import conf_dir

ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add README.md and its neighbors as pages; their links to files that are on no page become plain text."""
    pages = "|".join(map(re.escape, [file.src_uri for file in files] + list(ROOT_PAGES.values())))
    for name, page in ROOT_PAGES.items():
        text = Path(config.config_file_path).with_name(name).read_text(encoding="utf-8").replace("](docs/", "](")
        for other, target in ROOT_PAGES.items():
            text = text.replace(f"]({other}", f"]({target}")
        text = re.sub(rf"(?<!!)\[([^\]]+)\]\((?!https?:|#|(?:{pages})[#)])[^)]*\)", r"\1", text)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill a page's generated parts."""
    return re.sub(r"<!-- generated: (\w+) -->", lambda match: globals()[match[1]](), markdown)


def configuration() -> str:
    """Return a section for each group of conf/: its options, and its keys with type, default and meaning."""
    register()
    entries = yaml.safe_load((conf_dir() / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    groups = {group: option for entry in entries if isinstance(entry, dict) for group, option in entry.items()}
    with initialize_config_dir(str(conf_dir()), version_base="1.3"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Hydra's, about an option that is composed by itself
        return "\n\n".join(_group(group, option) for group, option in groups.items() if " " not in group)


def _group(group: str, default: str | None) -> str:
    options = sorted(path.stem for path in (conf_dir() / group).glob("[!_]*.yaml"))
    lines = [f"## {group}", "", "| option | meaning |", "| --- | --- |"]
    keys: dict[tuple[str, str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for option in options:
        text = (conf_dir() / group / f"{option}.yaml").read_text(encoding="utf-8")
        (meaning, *_) = re.findall(r"^# (?!@)(.*)$", text, re.MULTILINE)
        lines.append(f"| `{group}={option}`{' (default)' if option == default else ''} | {meaning} |")
        node = compose(f"{group}/{option}")[group] if default else None  # None: a setup of several groups
        meanings = _attribute_docstrings(OmegaConf.get_type(node)) if default else {}
        for field in fields(OmegaConf.get_type(node)) if default else ():
            if (value := OmegaConf.to_container(node, resolve=False)[field.name]) != option:
                keys[field.name, str(field.type), meanings.get(field.name, "")][_as_yaml(value)].append(option)
    lines += ["", "| key | type | default | meaning |", "| --- | --- | --- | --- |"] if keys else []
    for (key, kind, meaning), values in keys.items():
        everywhere = len(values) == 1 and len(options) in map(len, values.values())
        shown = [value if everywhere else f"{value} ({', '.join(where)})" for value, where in values.items()]
        lines.append(f"| `{group}.{key}` | {kind.replace('|', 'or')} | {'<br>'.join(shown)} | {meaning} |")
    return "\n".join(lines)


def _attribute_docstrings(schema: type) -> dict[str, str]:
    found = {}
    for base in filter(is_dataclass, reversed(schema.__mro__)):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, below in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                found[ast.unparse(field.target)] = " ".join(ast.literal_eval(below.value).split())
    return found


def _as_yaml(value: Any) -> str:
    return f"`{yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).partition(chr(10))[0]}`"


def cli() -> str:
    """Return a section with the ``--help`` of the command and of each of its sub-commands."""
    with patch.dict(os.environ, COLUMNS="100"):
        return "\n\n".join(f"## vggish-runner {name}\n\n```text\n{_help(name)}```" for name in ("", *COMMANDS))


def _help(name: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main([*name.split(), "--help"])
    return printed.getvalue()


def api() -> str:
    """Return mkdocstrings' blocks for the public names."""
    return "\n\n".join(f"::: runner.{name}" for name in runner.__all__)
