"""Print the answer while it is made: python examples/stream.py [PICTURE]."""

import sys

from vitrail import AutoModelForImageTextToText, AutoProcessor, TextStreamer
from vitrail.reader import embedded_path

picture = sys.argv[1] if len(sys.argv) > 1 else "examples/sign.png"
processor = AutoProcessor.from_pretrained(embedded_path())
model = AutoModelForImageTextToText.from_pretrained(embedded_path(), dtype="float32")
messages = [
    {
        "role": "user",
        "content": [{"type": "image", "url": picture}, {"type": "text", "text": "What does it say?"}],
    },
]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
model.generate(**inputs, max_new_tokens=100, streamer=streamer)
