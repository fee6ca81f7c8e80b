"""Names of transformers that Vitrail lacks → their replacements. Importing one raises NotInVitrail."""

_GENERATE = "give generate() the option itself, for instance temperature=, top_k=, top_p=, min_p= or repetition_penalty="
_TRAINER = (
    "train with `vitrail train` or vitrail.TrainingJob; transformers' own Trainer takes Vitrail's models too"
)
_CACHE = "use vitrail.KVCache or vitrail.DynamicCache; generate(cache_dtype='int8') makes a cache of 8 bits"
_OTHER_QUANTIZATION = "use vitrail.BitsAndBytesConfig or vitrail.QuantizeConfig"
_OTHER_MODEL = "Vitrail has the Pixtral family alone: vitrail.AutoModelForImageTextToText or vitrail.AutoModelForCausalLM"
_TOKENIZER = "use vitrail.AutoTokenizer"
_PROCESSOR = "use vitrail.AutoProcessor"

ELSEWHERE = {
    **dict.fromkeys(("Cache", "StaticCache", "QuantizedCache", "OffloadedCache", "HybridCache", "SinkCache"), _CACHE),
    **dict.fromkeys(
        (
            "TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper", "TypicalLogitsWarper",
            "MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor", "RepetitionPenaltyLogitsProcessor",
            "NoRepeatNGramLogitsProcessor", "PrefixConstrainedLogitsProcessor",
        ),
        _GENERATE,
    ),
    **dict.fromkeys(
        ("NoBadWordsLogitsProcessor", "SuppressTokensLogitsProcessor", "SequenceBiasLogitsProcessor", "LogitsWarper"),
        "write a vitrail.LogitsProcessor and give it as generate(logits_processor=…)",
    ),
    **dict.fromkeys(
        ("Trainer", "TrainingArguments", "Seq2SeqTrainer", "Seq2SeqTrainingArguments", "TrainerCallback",
         "DataCollatorForLanguageModeling", "DataCollatorWithPadding", "EarlyStoppingCallback"),
        _TRAINER,
    ),
    **dict.fromkeys(
        ("GPTQConfig", "AwqConfig", "HqqConfig", "QuantoConfig", "TorchAoConfig", "FineGrainedFP8Config", "Mxfp4Config"),
        _OTHER_QUANTIZATION,
    ),
    **dict.fromkeys(
        ("AutoModelForSequenceClassification", "AutoModelForTokenClassification", "AutoModelForQuestionAnswering",
         "AutoModelForSeq2SeqLM", "AutoModelForMaskedLM", "MistralForSequenceClassification",
         "MistralForTokenClassification", "MistralForQuestionAnswering", "Ministral3ForCausalLM", "Ministral3Model"),
        _OTHER_MODEL,
    ),
    **dict.fromkeys(
        ("PreTrainedTokenizer", "PreTrainedTokenizerFast", "PreTrainedTokenizerBase", "TokenizersBackend",
         "LlamaTokenizer", "LlamaTokenizerFast"),
        _TOKENIZER,
    ),
    **dict.fromkeys(
        ("ProcessorMixin", "ImageProcessingMixin", "PixtralImageProcessorPil", "AutoFeatureExtractor"), _PROCESSOR
    ),
    "GenerationMixin": "every vitrail model with a head has generate()",
    "AsyncTextIteratorStreamer": "use vitrail.TextIteratorStreamer, or the iterator vitrail.stream_text()",
    "CompileConfig": "models need no compilation: leave it out",
    "WatermarkingConfig": "watermarks are not supported: leave it out",
    "logging": "Vitrail warns through Python's warnings: use warnings.filterwarnings",
}  # fmt: skip


class NotInVitrail(ImportError):
    """A name of transformers that Vitrail lacks; the message gives its replacement."""
