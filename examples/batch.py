"""Several images of different sizes in one batch; each row is what it would be alone."""

from vitrail import AutoModelForImageTextToText, AutoProcessor, embedded_path, load_image

processor = AutoProcessor.from_pretrained(embedded_path())
model = AutoModelForImageTextToText.from_pretrained(embedded_path(), dtype="float32")

sign = load_image("examples/sign.png")
images = [sign, sign.resize((sign.width * 3 // 4, sign.height * 3 // 4))]
conversations = [
    [
        {
            "role": "user",
            "content": [{"type": "image", "image": image}, {"type": "text", "text": "What does it say?"}],
        }
    ]
    for image in images
]
inputs = processor.apply_chat_template(
    conversations,
    add_generation_prompt=True,
    padding=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
ids = model.generate(**inputs, max_new_tokens=100)
for answer in processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True):
    print(answer)
