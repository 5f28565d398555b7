"""Hooks of ``mkdocs build``: fill the generated parts of the reference, and add the pages that are not in docs/.

A line ``<!-- generated: NAME -->`` in a page is replaced by what the function ``NAME`` returns, from the dataclasses,
YAML files, parsers and tables that the command itself uses.
"""

import ast
import inspect
import io
import os
import re
import warnings
from collections import defaultdict
from contextlib import redirect_stdout, suppress
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from hydra import compose, initialize_config_dir
from mkdocs.structure.files import File, Files
from omegaconf import OmegaConf

from runner.cli.run import COMMANDS, main
from runner.config.composition import register
from runner.config.schema import GROUPS
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
    """Return a section for each group: its options, and its keys with type, default and meaning."""
    register()
    entries = yaml.safe_load((conf_dir() / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    chosen = {group: option for entry in entries if isinstance(entry, dict) for group, option in entry.items()}
    with initialize_config_dir(str(conf_dir()), version_base="1.3"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Hydra's, about an option that is composed by itself
        return "\n\n".join(_group(group, chosen.get(group, "")) for group in (*GROUPS, "experiment"))


def _group(group: str, default: str) -> str:
    lines = [f"## {group}", "", str(inspect.getdoc(GROUPS[group])) if is_dataclass(GROUPS.get(group)) else ""]
    options = {path.stem: path.read_text(encoding="utf-8") for path in sorted((conf_dir() / group).glob("*.yaml"))}
    lines += ["", "| option | meaning |", "| --- | --- |"] if options else []
    for option, text in options.items():
        (meaning, *_) = re.findall(r"^# (?!@)(.*)$", text, re.MULTILINE)
        lines.append(f"| `{group}={option}`{' (default)' if option == default else ''} | {meaning} |")
    keys: dict[tuple[str, str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for option in (options or [""]) if group in GROUPS else ():
        node = compose(f"{group}/{option}" if option else "config").get(group)
        if is_dataclass(GROUPS[group]):
            node = OmegaConf.merge(OmegaConf.structured(GROUPS[group]), node or {})
        meanings = _attribute_docstrings(OmegaConf.get_type(node))
        for field in fields(OmegaConf.get_type(node)):
            if (value := OmegaConf.to_container(node, resolve=False)[field.name]) != option:
                shown = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).splitlines()[0]
                keys[field.name, str(field.type), meanings[field.name]][f"`{shown}`"].append(option)
    lines += ["", "| key | type | default | meaning |", "| --- | --- | --- | --- |"] if keys else []
    for (key, kind, meaning), values in keys.items():
        everywhere = list(map(len, values.values())) == [len(options) or 1]
        cells = [value if everywhere else f"{value} ({', '.join(where)})" for value, where in values.items()]
        lines.append(f"| `{group}.{key}` | {kind.replace('|', 'or')} | {'<br>'.join(cells)} | {meaning} |")
    return "\n".join(lines)


def _attribute_docstrings(schema: type) -> dict[str, str]:
    trees = [ast.parse(inspect.getsource(base)).body[0] for base in reversed(schema.__mro__) if is_dataclass(base)]
    return {
        ast.unparse(field.target): " ".join(ast.literal_eval(below.value).replace("``", "`").split())
        for tree in trees
        for field, below in pairwise(tree.body)
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr)
    }


def cli() -> str:
    """Return a section with the ``--help`` of the command and of each of its sub-commands."""
    sections = []
    for name in ("", *COMMANDS):
        with patch.dict(os.environ, COLUMNS="100"), redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
            main([*name.split(), "--help"])
        sections.append(f"## vggish-runner {name}\n\n```text\n{printed.getvalue()}```")
    return "\n\n".join(sections)
