"""Executed notebooks as HTML pages that need no network: formulas as MathML, images inside, no progress bars."""

from __future__ import annotations

import base64
import io
import re
import tempfile
from collections.abc import Mapping
from html import escape
from pathlib import Path

import nbformat
from jinja2 import Environment, PackageLoader, select_autoescape
from latex2mathml.converter import convert
from nbconvert.filters import Highlight2HTML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image

IMAGE_WIDTH = 800  # pixels; figures lie beside the report in full size
PROGRESS = re.compile(r"\d+%\|.*\|\s*[\d.]+[kMG]?/|^\s*\d+[.\d]*it \[")  # a line that tqdm wrote
ANSI = re.compile(r"\x1b\[[0-9;]*m")
# What changes from run to run: the files in which the kernel keeps cells, addresses of objects.
FLEETING = (
    (re.compile(re.escape(tempfile.gettempdir()) + r"/ipykernel_\d+/\d+\.py"), "cell"),
    (re.compile(r" at 0x[0-9a-f]{6,}"), ""),
)


def pages() -> Environment:
    """The templates of all pages."""
    return Environment(
        loader=PackageLoader(__package__, "pages"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(notebook: Path, target: Path, paths: Mapping[str, str]) -> str:
    """Writes an executed notebook as an HTML page.

    Args:
        paths: beginnings of file names that say something about the machine -> what stands in the page instead.

    Returns:
        the title of the notebook.

    Raises:
        ValueError: the file is not a notebook.
    """
    try:
        content = nbformat.read(notebook, 4)
    except Exception as error:  # nbformat raises what its parts raise
        raise ValueError(f"{notebook} is not a readable notebook ({error}); run it again.") from error
    heading = title_of(content, notebook.stem)
    cells = [cell for cell in (shown_cell(cell, heading) for cell in content.cells) if cell]
    run = content.metadata.get("papermill", {})
    page = (
        pages()
        .get_template("notebook.html")
        .render(
            title=heading, name=notebook.stem, cells=cells, seconds=run.get("duration"), started=run.get("start_time")
        )
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(without_machine(page, {**places_of(run), **paths}), encoding="utf-8")
    return heading


def places_of(run: Mapping) -> dict[str, str]:
    """Folders that a notebook was run with (as papermill notes them), and what stands for them: they may lie elsewhere
    than those of this project."""
    folders = [v for v in run.get("parameters", {}).values() if isinstance(v, str) and Path(v).is_absolute()]
    project = Path(run.get("input_path", "")).parent.parent
    return {v: Path(v).name for v in folders} | ({str(project): "."} if len(project.parts) > 1 else {})


def title_of(notebook: nbformat.NotebookNode, default: str) -> str:
    """The first heading, as plain text."""
    for cell in notebook.cells:
        found = re.search(r"^#+\s+(.*)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else None
        if found:
            return re.sub(r"[*`$]", "", found[1]).strip()
    return default


def shown_cell(cell: nbformat.NotebookNode, title: str) -> dict | None:
    """A cell as the template takes it: kind, HTML, outputs; None for an empty one."""
    if not cell.source.strip() and not cell.get("outputs"):
        return None
    if cell.cell_type == "markdown":
        return {"kind": "prose", "html": prose(cell.source)}
    if cell.cell_type != "code":
        return {"kind": "prose", "html": f"<pre>{escape(cell.source)}</pre>"}
    outputs = [html for html in (shown_output(o, title) for o in joined(cell.outputs)) if html]
    return {"kind": "code", "html": reachable(Highlight2HTML(pygments_lexer="python")(cell.source)), "outputs": outputs}


class MathML(IPythonRenderer):
    """Markdown to HTML with formulas as MathML; a formula that cannot be converted stays as it was typed."""

    def __init__(self):
        super().__init__(escape=False, exclude_anchor_links=True)

    def inline_math(self, body: str) -> str:
        return formula(body, "inline")

    def block_math(self, body: str) -> str:
        return f'<div class="wide" tabindex="0">{formula(body, "block")}</div>'


def prose(source: str) -> str:
    """HTML of a Markdown text. Links to other notebooks lead to their pages."""
    html = reachable(MarkdownWithMath(renderer=MathML()).render(source))
    return re.sub(r'href="([\w.-]+)\.ipynb"', r'href="\1.html"', html)


def reachable(html: str) -> str:
    """HTML in which the keyboard reaches what may scroll sideways."""
    return html.replace("<pre>", '<pre tabindex="0">')


def formula(body: str, display: str) -> str:
    try:
        # \setminus comes as a character that common fonts lack; this one they have.
        return convert(upright(body), display=display).replace("&#x029F5;", "&#x02216;")
    except Exception:  # the converter raises many kinds; the typed formula can be read, too
        return f'<code class="formula">{escape(body.strip())}</code>'


def upright(body: str) -> str:
    """Words in \\mathrm as \\text: the converter would space their letters like a product of variables."""
    return re.sub(r"\\mathrm\{([A-Za-z ]{2,})\}", r"\\text{\1}", body)


def joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Outputs with consecutive pieces of one stream put together."""
    result: list[nbformat.NotebookNode] = []
    for output in outputs:
        last = result[-1] if result else None
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            result.append(nbformat.from_dict(output))
    return result


def shown_output(output: nbformat.NotebookNode, title: str) -> str | None:
    """HTML of one output, or None if nothing of it is worth showing (progress bars)."""
    if output.output_type == "stream":
        text = without_progress(output.text) if output.name == "stderr" else output.text
        return _text(text, output.name)
    if output.output_type == "error":
        return _text("\n".join(output.traceback), "error")
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img src="{small_image(data["image/png"])}" alt="Drawing in the notebook “{escape(title)}”">'
    if "text/html" in data and "<table" in (html := _plain_html(data["text/html"])):
        return f'<div class="wide" tabindex="0" role="region" aria-label="Table">{html}</div>'
    if "text/markdown" in data:
        return prose(data["text/markdown"])
    return _text(data.get("text/plain", ""), "result")


def without_progress(text: str) -> str:
    """What was written to stderr, without the bars that a terminal draws over each other."""
    lines = re.split(r"[\r\n]+", ANSI.sub("", text))
    return "\n".join(line for line in lines if line.strip() and not PROGRESS.search(line))


def small_image(encoded: str) -> str:
    """A PNG (base64) as a data address: at most `IMAGE_WIDTH` wide, as WebP, which draws lines in few bytes."""
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        picture = image.convert("RGBA" if image.mode in ("RGBA", "LA", "P") else "RGB")
    if picture.width > IMAGE_WIDTH:
        height = round(picture.height * IMAGE_WIDTH / picture.width)
        picture = picture.resize((IMAGE_WIDTH, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=82, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def without_machine(text: str, paths: Mapping[str, str]) -> str:
    """Text without names of folders of this machine; longer beginnings are replaced first."""
    for beginning in sorted(paths, key=len, reverse=True):
        text = text.replace(beginning, paths[beginning])
    for pattern, replacement in FLEETING:
        text = pattern.sub(replacement, text)
    return text


def _plain_html(html: str) -> str:
    """A table's HTML without styles, scripts and colours of its own."""
    html = re.sub(r"<(style|script)\b.*?</\1>", "", html, flags=re.DOTALL)
    return re.sub(r' (border|style|bgcolor)="[^"]*"', "", html)


def _text(text: str, kind: str) -> str | None:
    text = ANSI.sub("", text).rstrip()
    return f'<pre class="{kind}" tabindex="0">{escape(text)}</pre>' if text else None
