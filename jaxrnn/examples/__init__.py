"""The systems that the package was built to run, each one readable file.

Each module has a frozen dataclass ``Settings``, whose fields are the options of the command, and
a function ``main(settings)`` that runs it, prints, saves the figure and returns the history. What
the source reports, or PyTorch where the source is silent, is a line, ``REPORTED``, and what came
out is another, ``result(history)``: `jaxrnn.examples.every` puts them side by side.
"""

NAMES = {
    name: f"jaxrnn.examples.{file}"
    for name, file in {
        "sine": "sine",
        "shapes": "shapes",
        "scratch": "scratch",
        "hello": "hello",
        "hihello": "hihello",
        "charseq": "charseq",
        "longseq": "longseq",
        "stocks": "stocks",
        "seq2seq": "seq2seq",
        "packed": "packed",
        "keras": "keras_sine",
        "stateful": "stateful",
        "taxonomy": "taxonomy",
        "episodes": "episodes",
    }.items()
}
