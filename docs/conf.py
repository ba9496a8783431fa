"""Sphinx configuration: ``python -m sphinx -W --keep-going docs OUT``.

Pages are Markdown. The API reference is generated from the docstrings: Google sections, reST
inside, Markdown tables, names in single backticks. The build needs no network.
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

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_parser",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["width.css"]
html_title = f"jaxrnn {release}"
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
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

# Internal modules and packages; a package exports their public names, if any. Every public name of
# the other modules must be on a page.
INSIDE = {
    "jaxrnn.__main__",
    "jaxrnn.backends.base",
    "jaxrnn.backends.cpu",
    "jaxrnn.backends.elementwise",
    "jaxrnn.backends.hopper",
    "jaxrnn.backends.operations",
    "jaxrnn.backends.primitives",
    "jaxrnn.backends.scan",
    "jaxrnn.backends.sharding",
    "jaxrnn.backends.step",
    "jaxrnn.backends.tpu",
    "jaxrnn.cells.base",
    "jaxrnn.cells.weights",
    "jaxrnn.cli",
    "jaxrnn.core.masks",
    "jaxrnn.core.params",
    "jaxrnn.core.state",
    "jaxrnn.data.csv",
    "jaxrnn.examples",
    "jaxrnn.forecasting.command",
    "jaxrnn.forecasting.forecaster",
    "jaxrnn.generation.sampling",
    "jaxrnn.text.command",
}

KINDS = ("class", "exception", "function")
PROPERTY_DOCS = {}
LINKED = {"fit", "sweep", "generate"}  # plain words that are links when written as code


def public_modules(package):
    """Yield the names of the public modules of a package, nested ones included."""
    yield package.__name__
    for info in pkgutil.iter_modules(getattr(package, "__path__", ()), f"{package.__name__}."):
        if info.name not in INSIDE and not info.name.rsplit(".", 1)[1].startswith("_"):
            yield from public_modules(importlib.import_module(info.name))


def public_names():
    """Yield the qualified name and the object of every public class and function."""
    for module_name in public_modules(jaxrnn):
        module = importlib.import_module(module_name)
        local = [n for n, value in vars(module).items() if value_module(value) == module_name]
        for name in getattr(module, "__all__", [n for n in local if not n.startswith("_")]):
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                yield f"{module_name}.{name}", value


def value_module(value):
    """Return the name of the module that defines a class or function, else None."""
    return value.__module__ if inspect.isclass(value) or inspect.isfunction(value) else None


def check_complete(app, env):
    """Warn of each public name that is on no page, under any of its import paths."""
    paths = {}
    for path, value in public_names():
        paths.setdefault(value, set()).add(path)
    known = env.get_domain("py").objects
    for value, names in paths.items():
        if not (names | {f"{value.__module__}.{value.__qualname__}"}) & set(known):
            logging.getLogger(__name__).warning("%s is on no page of docs/api", min(names))


def find_entry(env, target):
    """Return the entry of a class or function, by its qualified or its unambiguous name."""
    known = env.get_domain("py").objects
    if target in known:
        return target, known[target]
    last = target.rsplit(".", 1)[-1]
    if target != last and not target.startswith("jaxrnn."):
        return None
    matches = [
        name
        for name, entry in known.items()
        if entry.objtype in KINDS and not entry.aliased and name.endswith(f".{last}")
    ]
    matches = [name for name in matches if name.count(".") == 1] or matches  # prefer the top level
    return (matches[0], known[matches[0]]) if len(matches) == 1 else None


def link(app, docname, target, content):
    """Return a reference to the object of this name, or None."""
    match = find_entry(app.env, target)
    if match is None:
        return None
    name, entry = match
    return make_refnode(app.builder, docname, entry.docname, entry.node_id, content, name)


def resolve(app, env, node, contnode):
    """Resolve a name that a docstring writes without its module."""
    if node.get("refdomain") == "py" and node.get("reftype") == "obj":
        return link(app, node["refdoc"], node["reftarget"], contnode)
    return None


def link_code(app, doctree, docname):
    """Turn names written as code into links."""
    for node in list(doctree.findall(nodes.literal)):
        text = node.astext()
        name = re.sub(r"\(.*\)$", "", text)
        linkable = name in LINKED or re.search(r"[A-Z_.]", name)
        if (
            not linkable
            or not re.fullmatch(r"[\w.]+", name)
            or isinstance(node.parent, nodes.reference)
        ):
            continue
        reference = link(app, docname, name, node.deepcopy())
        if reference is not None:
            node.replace_self(reference)


def close_fences(app, docname, source):
    """Remove the blank line that ends a doctest before its closing fence."""
    source[0] = source[0].replace("\n\n```\n", "\n```\n")


def tables(app, what, name, obj, options, lines):
    """Convert the Markdown tables of a docstring to reST."""
    remaining, converted = list(lines), []
    while remaining:
        if len(remaining) > 1 and remaining[0].startswith("|") and set(remaining[1]) <= set("|-: "):
            rows = []
            while remaining and remaining[0].startswith("|"):
                rows.append([cell.strip() for cell in remaining.pop(0).strip("|").split(" |")])
            converted += [".. list-table::", "   :header-rows: 1", ""]
            for first, *others in rows[:1] + rows[2:]:
                converted += [f"   * - {first}", *(f"     - {cell}" for cell in others)]
            converted.append("")
        else:
            converted.append(remaining.pop(0))
    lines[:] = converted


def choose_members(app, what, name, obj, skipped, options):
    """Include `__call__`; skip fields of named tuples, which the class documents."""
    if name == "__call__" and getattr(obj, "__doc__", None):
        return False
    return True if type(obj).__name__ == "_tuplegetter" else None


def constructor(app, what, name, obj, options, signature, returns):
    """Return the signature of a module's `__init__`, which Flax's metaclass hides."""
    if what != "class" or not issubclass(obj, nnx.Module):
        return None
    full = sphinx_inspect.signature(obj.__init__)
    public = full.replace(
        parameters=list(full.parameters.values())[1:], return_annotation=inspect.Signature.empty
    )
    return sphinx_inspect.stringify_signature(public, unqualified_typehints=True), returns


def save_property(app, what, name, obj, options, lines):
    """Save a property's docstring from Napoleon, which reads text before a colon as a type."""
    if what in ("property", "attribute"):
        PROPERTY_DOCS[name] = list(lines)


def restore_property(app, what, name, obj, options, lines):
    """Restore the docstring that `save_property` saved."""
    if name in PROPERTY_DOCS:
        lines[:] = PROPERTY_DOCS.pop(name)


def setup(app):
    """Connect the handlers."""
    app.connect("autodoc-process-docstring", save_property, priority=400)  # Napoleon's is 500
    app.connect("autodoc-process-docstring", restore_property, priority=600)
    app.connect("autodoc-process-docstring", tables)
    app.connect("autodoc-process-signature", constructor)
    app.connect("autodoc-skip-member", choose_members)
    app.connect("missing-reference", resolve)
    app.connect("doctree-resolved", link_code)
    app.connect("source-read", close_fences)
    app.connect("env-check-consistency", check_complete)
