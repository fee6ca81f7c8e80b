"""The dialogue that the Pixtral Large card describes: python examples/card_dialogue.py [FOLDER].

A tool draws an image, the image comes back in the tool's result, and the conversation goes on about it. FOLDER is a
checkpoint with a v7m1 tokenizer; its model then answers. Without FOLDER the answers are written down here, and a tiny
model with random weights shows that the image is still seen at the end: another image gives other predictions.
"""

import sys
from importlib.resources import files

import torch
from PIL import Image, ImageDraw

from vitrail import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralCommonTokenizer,
    PixtralProcessor,
    processor_parts,
)

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "draw",
            "description": "Draws a circle and returns the image.",
            "parameters": {
                "type": "object",
                "properties": {"colour": {"type": "string"}},
                "required": ["colour"],
            },
        },
    }
]


def draw(colour):
    image = Image.new("RGB", (96, 64), "white")
    ImageDraw.Draw(image).ellipse((32, 16, 64, 48), fill=colour)
    return image


def dialogue(colour):
    """The conversation up to its last question; the tool is called by the second message."""
    call = {
        "id": "draw00001",
        "type": "function",
        "function": {"name": "draw", "arguments": {"colour": colour}},
    }
    messages = [
        {"role": "system", "content": "You draw, and you talk about what you drew."},
        {"role": "user", "content": "Please draw a circle."},
        {"role": "assistant", "content": "With pleasure.", "tool_calls": [call]},
        {
            "role": "tool",
            "tool_call_id": call["id"],
            "content": [{"type": "text", "text": "Done: "}, {"type": "image", "image": draw(colour)}],
        },
        {"role": "assistant", "content": "Here it is."},
    ]
    for turn in range(1, 15):
        messages.append({"role": "user", "content": f"Question {turn}: is the circle still in the middle?"})
        messages.append({"role": "assistant", "content": "Yes, it is."})
    return [*messages, {"role": "user", "content": "Question 15: which colour does it have?"}]


def load(folder):
    if folder is not None:
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", device_map="auto")
        return AutoProcessor.from_pretrained(folder), model
    file = files("mistral_common") / "data" / "mistral_instruct_tokenizer_241114.model.v7m1"
    processor = PixtralProcessor(**processor_parts(MistralCommonTokenizer(str(file))))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"model_type": "pixtral", "patch_size": 16, "image_size": 1024, **sizes}
    text = {
        "model_type": "mistral",
        "vocab_size": len(processor.tokenizer),
        "num_key_value_heads": 1,
        **sizes,
    }
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=vision,
        text_config={**text, "head_dim": 16},
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
    )
    return processor, LlavaForConditionalGeneration(config).eval()


def prepare(processor, colour):
    return processor.apply_chat_template(
        dialogue(colour), tools=TOOLS, format="card", tokenize=True, return_dict=True, return_tensors="pt"
    )


def main(folder=None):
    processor, model = load(folder)
    inputs = prepare(processor, "red").to(model.device, dtype=model.dtype)
    ids = inputs["input_ids"][0]
    images = int((ids == processor.image_end_token_id).sum())
    print(f"{len(ids)} ids after fifteen questions, {images} image among them")
    if folder is not None:
        answer = model.generate(**inputs, max_new_tokens=100)
        print(processor.decode(answer[0, len(ids) :], skip_special_tokens=True))
        return
    other = prepare(processor, "blue").to(model.device, dtype=model.dtype)
    with torch.inference_mode():
        red, blue = (
            model(**batch).logits[0, -1]
            for batch in (inputs, {**inputs, "pixel_values": other["pixel_values"]})
        )
    print(f"another image in its place changes the next prediction by up to {(red - blue).abs().max():.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
