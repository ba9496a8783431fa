"""Teach a network to say hello: 'hihell' goes in, 'ihello' is to come out.

The training is that of `charseq`. The word is harder than it looks: 'h' is followed by 'i' once
and by 'e' once, 'l' by 'l' and by 'o', so that the state must tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxrnn.examples import charseq

REPORTED = "'ihello'; PyTorch 5 or 6 of 6 right, by the seed"


@dataclass(frozen=True)
class Settings(charseq.Settings):
    """The options of ``jaxrnn run hihello``: those of `charseq` with another text."""

    text: str = field(default="hihello", metadata={"help": "what is to be learned"})
    out: str = field(
        default="hihello.png", metadata={"help": "the figure: a .png, .svg or .pdf file"}
    )


def result(history: charseq.History) -> str:
    """What came out, in a line."""
    return charseq.result(history)


def main(settings: Settings) -> charseq.History:
    """Train, print what the source prints at each step, save the figure."""
    return charseq.main(settings)
