"""The systems that the package was built to run, each one readable file.

Each module has a frozen dataclass ``Settings``, whose fields are the options of the command, and
a function ``main(settings)`` that runs it, prints, saves the figure and returns the history.
"""

NAMES = {
    "sine": "jaxrnn.experiments.sine",
    "shapes": "jaxrnn.experiments.shapes",
    "hello": "jaxrnn.experiments.hello",
    "packed": "jaxrnn.experiments.packed",
    "episodes": "jaxrnn.experiments.episodes",
    "stateful": "jaxrnn.experiments.stateful",
    "charseq": "jaxrnn.experiments.charseq",
    "hihello": "jaxrnn.experiments.hihello",
}
