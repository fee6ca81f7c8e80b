"""Print the answer while it is made: python examples/stream.py [IMAGE]."""

import sys

import vitrail

image = sys.argv[1] if len(sys.argv) > 1 else "examples/sign.png"
for text in vitrail.load().stream(image, "What does it say?"):
    print(text, end="", flush=True)
print()
