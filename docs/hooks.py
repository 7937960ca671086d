"""What mkdocs fills in while it builds: the tables of settings, and the results of the benchmarks.

Both have one source (`src/barlow/config.py`, `benchmarks/results/`), so no default and no figure is written twice.
"""

import re
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs calls this with the text of every page."""
    markdown = re.sub(r"^(```\w+) no-run$", r"\1", markdown, flags=re.MULTILINE)  # a mark for tests/test_docs.py
    if "<!-- settings -->" in markdown:
        markdown = markdown.replace("<!-- settings -->", settings_tables())
    if "<!-- benchmark results -->" in markdown:
        markdown = markdown.replace("<!-- benchmark results -->", benchmark_results())
    return markdown


def settings_tables() -> str:
    """One table per section of the configuration: flag, default, meaning."""
    module = griffe.load("barlow.config", search_paths=[ROOT / "src"])
    sections = [str(leaf.annotation) for leaf in module["PretrainConfig"].attributes.values()]
    return "\n\n".join(_settings_table(module[name]) for name in sections)


def _settings_table(section: Any) -> str:
    lines = [f"### {section.docstring.value.rstrip('.')}", "", "| flag | default | meaning |", "|---|---|---|"]
    for name, leaf in section.attributes.items():
        lines.append(f"| `--{name.replace('_', '-')}` | {_default(str(leaf.value))} | {leaf.docstring.value} |")
    return "\n".join(lines)


def _default(value: str) -> str:
    plain = value.strip("()'\"").replace(",", "")
    return {"None": "", "False": "off", "True": "on"}.get(value, f"`{plain}`" if plain else "")


def benchmark_results() -> str:
    """Every Markdown file of the results, in the order of their names, its headings one level lower."""
    return "\n\n".join(
        re.sub(r"^#", "##", file.read_text(), flags=re.MULTILINE) for file in sorted(RESULTS.glob("*.md"))
    )
