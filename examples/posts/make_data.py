"""Write questions like those of a question-and-answer site, as one XML file.

    data/data.xml     <row Id="1" PostTypeId="1" Tags="<r><plotting>" Title="…" Body="<p>…</p>"/>, 400 times

What they say is made up of words: some belong to questions about the language R, some to others, most to both. So a
model can learn to tell them apart, though not every time. Every run writes the same bytes.
"""

from __future__ import annotations

import random
from pathlib import Path
from xml.sax.saxutils import quoteattr

POSTS = 400
OF_R = "data.frame ggplot dplyr tidyverse vector factor lapply cran knitr shiny".split()
OF_OTHERS = "numpy pointer template servlet jquery selector pandas compiler closure migration".split()
OF_BOTH = """how can error value plot table column string list function loop convert read file install package
    version update index merge sort count group filter missing result change create print""".split()
TAGS = ("python", "java", "c++", "javascript", "sql")


def sentence(chance: random.Random, special: list[str], length: int) -> str:
    words = [chance.choice(special if chance.random() < 0.04 else OF_BOTH) for _ in range(length)]
    return " ".join(words).capitalize()


def main() -> None:
    chance = random.Random(20170426)
    rows = []
    for number in range(1, POSTS + 1):
        about_r = chance.random() < 0.3
        special = OF_R if about_r else OF_OTHERS
        tags = ["r" if about_r else chance.choice(TAGS), chance.choice(OF_BOTH)]
        body = "".join(f"<p>{sentence(chance, special, 12)}.</p>\n" for _ in range(chance.randint(1, 3)))
        rows.append(
            f'  <row Id="{number}" PostTypeId="1" Tags={quoteattr("".join(f"<{tag}>" for tag in tags))} '
            f"Title={quoteattr(sentence(chance, special, 8) + '?')} Body={quoteattr(body)} />"
        )
    Path("data").mkdir(exist_ok=True)
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<posts>", *rows, "</posts>"]
    Path("data/data.xml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {POSTS} posts to data/data.xml")


if __name__ == "__main__":
    main()
