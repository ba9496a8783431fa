"""How the documentation is built: ``python -m sphinx -W --keep-going docs OUT``.

Pages are Markdown, the reference is the docstrings as they stand: Google's sections, reST inside,
tables as Markdown has them, names in single backticks. Nothing is fetched from anywhere.
"""

import importlib
import inspect
import pkgutil
import re

from docutils import nodes
from flax import nnx
from sphinx.util import inspect as sphinx_inspect
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

import jaxrnn

project = "jaxrnn"
copyright = "the authors of jaxrnn"
release = version = jaxrnn.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_parser"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["width.css"]
html_title = f"jaxrnn {release}"
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "py:obj"
add_module_names = False
maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# What is no part of the public face: what stands behind it, and programs. A module that is neither
# here nor on a page of the reference is a warning, and so is each of its public names.
INSIDE = {
    "__main__", "blocks", "calls", "checks", "cli", "described", "devices", "experiments", "files",
    "fused", "fused_loops", "initial_weights", "instead", "kernels", "layers", "loops", "native",
    "operands", "operations", "parallel", "parameters", "plan", "products", "ragged",
    "single", "states", "step", "torch_checks", "weight_arrays",
}  # fmt: skip

KINDS = ("class", "exception", "function")
ASIDE = {}
LINKED = {"fit", "sweep", "generate"}  # words that are links as code all the same


def public_names():
    """The full name of all that a user may call, each once, by the module that offers it."""
    yield from (f"jaxrnn.{name}" for name in jaxrnn.__all__)
    for info in pkgutil.iter_modules(jaxrnn.__path__):
        if info.name in INSIDE or info.name.startswith("_"):
            continue
        module = importlib.import_module(f"jaxrnn.{info.name}")
        own = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_")
            and (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__ == module.__name__
        ]
        yield from (f"{module.__name__}.{name}" for name in getattr(module, "__all__", own))


def check_complete(app, env):
    """Warn of each public name that is on no page."""
    known = env.get_domain("py").objects
    last = {name.rsplit(".", 1)[1] for name in known}
    for name in public_names():
        again = name.count(".") == 1 and name.rsplit(".", 1)[1] in last  # offered a second time
        if name not in known and not again and f"jaxrnn.{name.rsplit('.', 1)[1]}" not in known:
            logging.getLogger(__name__).warning("%s is on no page of docs/api", name)


def place_of(env, target):
    """Where a class or function is described: by its full name, or by one that only it has."""
    known = env.get_domain("py").objects
    if target in known:
        return target, known[target]
    last = target.rsplit(".", 1)[-1]
    if target != last and not target.startswith("jaxrnn."):
        return None
    found = [
        name
        for name, entry in known.items()
        if entry.objtype in KINDS and not entry.aliased and name.endswith(f".{last}")
    ]
    ours = [name for name in found if name.count(".") == 1]  # offered by the package itself
    found = ours or found
    return (found[0], known[found[0]]) if len(found) == 1 else None


def link(app, docname, target, content):
    """A reference to what has this name, or nothing."""
    place = place_of(app.env, target)
    if place is None:
        return None
    name, entry = place
    return make_refnode(app.builder, docname, entry.docname, entry.node_id, content, name)


def resolve(app, env, node, contnode):
    """Find what a docstring names without its module."""
    if node.get("refdomain") == "py" and node.get("reftype") == "obj":
        return link(app, node["refdoc"], node["reftarget"], contnode)
    return None


def link_code(app, doctree, docname):
    """Make links of the names that stand as code in the text."""
    for node in list(doctree.findall(nodes.literal)):
        text = node.astext()
        name = re.sub(r"\(.*\)$", "", text)
        telling = name in LINKED or re.search(r"[A-Z_.]", name)
        if (
            not telling
            or not re.fullmatch(r"[\w.]+", name)
            or isinstance(node.parent, nodes.reference)
        ):
            continue
        reference = link(app, docname, name, node.deepcopy())
        if reference is not None:
            node.replace_self(reference)


def close_fences(app, docname, source):
    """Take away the empty line that ends an example for doctest, before its fence."""
    source[0] = source[0].replace("\n\n```\n", "\n```\n")


def tables(app, what, name, obj, options, lines):
    """Turn the tables of a docstring, written as in Markdown, into those of reST."""
    text, done = list(lines), []
    while text:
        if len(text) > 1 and text[0].startswith("|") and set(text[1]) <= set("|-: "):
            rows = []
            while text and text[0].startswith("|"):
                rows.append([cell.strip() for cell in text.pop(0).strip("|").split(" |")])
            done += [".. list-table::", "   :header-rows: 1", ""]
            for first, *others in rows[:1] + rows[2:]:
                done += [f"   * - {first}", *(f"     - {cell}" for cell in others)]
            done.append("")
        else:
            done.append(text.pop(0))
    lines[:] = done


def choose_members(app, what, name, obj, skipped, options):
    """Calls are described; fields of named tuples are, by the docstring of their class."""
    if name == "__call__" and getattr(obj, "__doc__", None):
        return False
    return True if type(obj).__name__ == "_tuplegetter" else None


def constructor(app, what, name, obj, options, signature, returns):
    """The arguments of a module's own constructor; Flax's metaclass hides them."""
    if what != "class" or not issubclass(obj, nnx.Module):
        return None
    whole = sphinx_inspect.signature(obj.__init__)
    own = whole.replace(parameters=list(whole.parameters.values())[1:])
    own = own.replace(return_annotation=inspect.Signature.empty)
    return sphinx_inspect.stringify_signature(own, unqualified_typehints=True), returns


def set_aside(app, what, name, obj, options, lines):
    """Keep a property's text from Napoleon, which takes what is before a colon for its type."""
    if what in ("property", "attribute"):
        ASIDE[name] = list(lines)


def put_back(app, what, name, obj, options, lines):
    """Put in again what was set aside."""
    if name in ASIDE:
        lines[:] = ASIDE.pop(name)


def setup(app):
    """Hang in what stands above."""
    app.connect("autodoc-process-docstring", set_aside, priority=400)  # Napoleon's is 500
    app.connect("autodoc-process-docstring", put_back, priority=600)
    app.connect("autodoc-process-docstring", tables)
    app.connect("autodoc-process-signature", constructor)
    app.connect("autodoc-skip-member", choose_members)
    app.connect("missing-reference", resolve)
    app.connect("doctree-resolved", link_code)
    app.connect("source-read", close_fences)
    app.connect("env-check-consistency", check_complete)
