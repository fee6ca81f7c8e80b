"""Ask about an image from Python: python examples/ask.py [IMAGE] [QUESTION] [FOLDER]."""

import sys

import vitrail

defaults = ["examples/sign.png", "What does it say?", None]
image, question, folder = [*sys.argv[1:], *defaults[len(sys.argv) - 1 :]]

print(vitrail.load(folder).ask(image, question))
