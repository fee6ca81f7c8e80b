"""Ask about a picture from Python: python examples/ask.py [PICTURE] [QUESTION] [FOLDER]."""

import sys

from vitrail import AutoModelForImageTextToText, AutoProcessor
from vitrail.reader import embedded_path

defaults = ["examples/sign.png", "What does it say?", embedded_path()]
picture, question, folder = [*sys.argv[1:], *defaults[len(sys.argv) - 1 :]]

processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", device_map="auto")
messages = [
    {"role": "user", "content": [{"type": "image", "url": picture}, {"type": "text", "text": question}]},
]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
).to(model.device, dtype=model.dtype)
ids = model.generate(**inputs, max_new_tokens=100)
print(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
