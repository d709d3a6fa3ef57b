"""The tasks that a Hugging Face model is exported for: what goes in, what comes out, which axes vary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from sparseflow_trt._deps import require
from sparseflow_trt.errors import InputError, one_line
from sparseflow_trt.pytorch.experts import use_every_expert
from sparseflow_trt.pytorch.exportable import Axes, Exportable, wrap
from sparseflow_trt.pytorch.hugging_face import TorchDtype, load_hugging_face, read_config, takes

Task = Literal["encoder", "decoder", "decoder-with-cache", "image", "audio", "text-image"]
TASKS: tuple[Task, ...] = get_args(Task)

_BATCH, _SEQ, _PAST = 2, 9, 5  # of the inputs that a model is traced with
_TOKENS: Axes = {0: "batch", 1: "seq"}
_SUM: Axes = {0: "batch", 1: "past + seq"}
_HINT = "Choose one with --task, or write a function that returns (module, inputs) and give FILE.py:FUNCTION."


def load_exportable(
    source: Path,
    *,
    task: Task | None = None,
    model_class: str = "",
    dtype: TorchDtype | None = None,
    random_weights: bool = False,
    trust_remote_code: bool = False,
) -> Exportable:
    """Makes the module of a Hugging Face folder ready to be exported.

    Attention is transformers' plain one ("eager"): products and a softmax that every backend knows. Every
    expert of a mixture of experts is run on every token and weighed, so that each is one product with
    constant weights.

    Args:
        source: A folder with a config.json, or that file.
        task: What for; None goes by the configuration.
        model_class: A class of transformers; "" is the one that suits the task.
        dtype: Of the weights; None keeps the checkpoint's.
        random_weights: Draw them, instead of reading those in the folder.
        trust_remote_code: Run Python that lies in the folder.

    Raises:
        InputError: No model can be made of it, or the model does not suit the task.
        NotInstalledError: PyTorch or transformers.
    """
    transformers = require("transformers", "Hugging Face models")
    config = read_config(source, trust_remote_code)
    task = task or find_task(transformers, config)
    named = model_class or _class_for(transformers, config, task)
    use_every_expert(config)
    model = load_hugging_face(
        source,
        weights="random" if random_weights else "given",
        model_class=named,
        config=config,
        dtype=dtype,
        attention="eager",
        trust_remote_code=trust_remote_code,
    )
    try:
        return _MAKERS[task](model, task)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, RuntimeError) as error:
        raise InputError(
            f"{source}: a {type(model).__name__} does not do the task '{task}': {one_line(error)}.", _HINT
        ) from error


def find_task(transformers: Any, config: Any) -> Task:
    """The task that a configuration is for: by the class it names, else by its family.

    Raises:
        InputError: Neither says.
    """
    names = transformers.models.auto.modeling_auto
    named = (config.architectures or [""])[0]
    family = config.model_type
    if hasattr(config, "text_config") and hasattr(config, "vision_config"):
        return "text-image"
    if named.endswith(("ForCausalLM", "LMHeadModel")):
        return "decoder"
    made_by = getattr(transformers, named, None) if named else None
    main = getattr(made_by, "main_input_name", "")
    if main == "pixel_values" or family in names.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "image"
    if main == "input_features" or family in names.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES:
        return "audio"
    masked = family in names.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if not named and family in names.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not masked:
        return "decoder"
    if family in names.MODEL_MAPPING_NAMES:
        return "encoder"
    raise InputError(f"a configuration of the family '{family}' does not say which task it is for.", _HINT)


def _class_for(transformers: Any, config: Any, task: Task) -> str:
    named = (config.architectures or [""])[0]
    if task in ("decoder", "decoder-with-cache"):
        return "AutoModelForCausalLM"
    known = bool(named) and getattr(transformers, named, None) is not None
    if task == "image" and not known:
        names = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
        return "AutoModelForImageClassification" if config.model_type in names else "AutoModel"
    # of an encoder-decoder only the encoder is wanted; a model to be trained further has heads for that
    bare = task == "audio" or named.endswith(("ForPreTraining", "ForConditionalGeneration"))
    return "AutoModel" if bare or not known else named


def _encoder(model: Any, task: Task) -> Exportable:
    inputs = {"input_ids": _token_ids(model), "attention_mask": _mask(_BATCH, _SEQ)}
    if getattr(model.config, "type_vocab_size", 0) > 1 and takes(model.forward, "token_type_ids"):
        inputs["token_type_ids"] = inputs["input_ids"] * 0
    names = tuple(inputs)
    part = _encoder_of(model)
    output = _output_name(part(model), inputs)

    def forward(model: Any, *tensors: Any) -> Any:
        return part(model)(**dict(zip(names, tensors, strict=True)))[output]

    return Exportable(wrap(model, forward), inputs, dict.fromkeys(names, _TOKENS), (output,), "model.", task)


def _encoder_of(model: Any) -> Callable[[Any], Any]:
    """What of a model is the encoder: all of it, unless it has a decoder, too."""
    has_decoder = model.config.is_encoder_decoder or hasattr(model, "decoder")
    return (lambda model: model.get_encoder()) if has_decoder else (lambda model: model)


def _decoder(model: Any, task: Task) -> Exportable:
    inputs = {"input_ids": _token_ids(model), "attention_mask": _mask(_BATCH, _SEQ)}

    def forward(model: Any, input_ids: Any, attention_mask: Any) -> Any:
        return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits

    axes = dict.fromkeys(inputs, _TOKENS)
    return Exportable(wrap(model, forward), inputs, axes, ("logits",), "model.", task)


def _decoder_with_cache(model: Any, task: Task) -> Exportable:
    """Keys and values go in and come out as one tensor each, [batch, heads, past, channels]."""
    torch = require("torch", "exporting PyTorch modules")
    cache_class = require("transformers", "Hugging Face models").DynamicCache
    with torch.no_grad():
        once = model(input_ids=_token_ids(model)[:, :1], use_cache=True).past_key_values
    if not isinstance(once, cache_class):
        raise TypeError(f"its cache is a {type(once).__name__}, not keys and values")
    layers = [(layer.keys, layer.values) for layer in once.layers]
    inputs = {"input_ids": _token_ids(model), "attention_mask": _mask(_BATCH, _PAST + _SEQ)}
    has_positions = takes(model.forward, "position_ids")
    if has_positions:
        inputs["position_ids"] = torch.arange(_PAST, _PAST + _SEQ).expand(_BATCH, _SEQ).contiguous()
    axes = dict.fromkeys(inputs, _TOKENS) | {"attention_mask": _SUM}
    first = len(inputs)
    outputs = ["logits"]
    for index, pair in enumerate(layers):
        for what, seen in zip(("key", "value"), pair, strict=True):
            shape = (_BATCH, seen.shape[1], _PAST, seen.shape[3])
            inputs[f"past_key_values.{index}.{what}"] = torch.randn(shape).to(seen.dtype)
            axes[f"past_key_values.{index}.{what}"] = {0: "batch", 2: "past"}
            outputs.append(f"present.{index}.{what}")

    def forward(model: Any, *tensors: Any) -> Any:
        past = cache_class()
        for index in range(len(layers)):
            past.update(tensors[first + 2 * index], tensors[first + 2 * index + 1], index)
        said = {"position_ids": tensors[2]} if has_positions else {}
        made = model(
            input_ids=tensors[0], attention_mask=tensors[1], past_key_values=past, use_cache=True, **said
        )
        present = [tensor for layer in made.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return (made.logits, *present)

    return Exportable(wrap(model, forward), inputs, axes, tuple(outputs), "model.", task)


def _image(model: Any, task: Task) -> Exportable:
    inputs = {"pixel_values": _pixels(model)}
    output = _output_name(model, inputs)

    def forward(model: Any, pixel_values: Any) -> Any:
        return model(pixel_values=pixel_values)[output]

    return Exportable(wrap(model, forward), inputs, {"pixel_values": {0: "batch"}}, (output,), "model.", task)


def _audio(model: Any, task: Task) -> Exportable:
    torch = require("torch", "exporting PyTorch modules")
    config = model.config
    frames = 2 * config.max_source_positions  # the second convolution of Whisper's has a stride of two
    features = torch.randn(_BATCH, config.num_mel_bins, frames).to(model.dtype)
    part = _encoder_of(model)

    def forward(model: Any, input_features: Any) -> Any:
        return part(model)(input_features).last_hidden_state

    inputs, axes = {"input_features": features}, {"input_features": {0: "batch"}}
    return Exportable(wrap(model, forward), inputs, axes, ("last_hidden_state",), "model.", task)


def _text_image(model: Any, task: Task) -> Exportable:
    inputs = {
        "input_ids": _token_ids(model), "attention_mask": _mask(_BATCH, _SEQ), "pixel_values": _pixels(model),
    }  # fmt: skip
    axes = {"input_ids": _TOKENS, "attention_mask": _TOKENS, "pixel_values": {0: "images"}}

    def forward(model: Any, input_ids: Any, attention_mask: Any, pixel_values: Any) -> Any:
        made = model(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values)
        return made.text_embeds, made.image_embeds

    outputs = ("text_embeds", "image_embeds")
    return Exportable(wrap(model, forward), inputs, axes, outputs, "model.", task)


_MAKERS: dict[Task, Callable[[Any, Task], Exportable]] = {
    "encoder": _encoder,
    "decoder": _decoder,
    "decoder-with-cache": _decoder_with_cache,
    "image": _image,
    "audio": _audio,
    "text-image": _text_image,
}


def _token_ids(model: Any) -> Any:
    torch = require("torch", "exporting PyTorch modules")
    words = model.config.get_text_config().vocab_size
    return torch.randint(0, words, (_BATCH, _SEQ), generator=torch.Generator().manual_seed(0))


def _mask(batch: int, length: int) -> Any:
    return require("torch", "exporting PyTorch modules").ones(batch, length, dtype=int)


def _pixels(model: Any) -> Any:
    torch = require("torch", "exporting PyTorch modules")
    config = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", 224)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return torch.randn(_BATCH, getattr(config, "num_channels", 3), height, width).to(model.dtype)


def _output_name(model: Any, inputs: dict[str, Any]) -> str:
    torch = require("torch", "exporting PyTorch modules")
    with torch.no_grad():
        made = model(**inputs)
    for name in ("logits", "last_hidden_state"):
        if name in made:
            return name
    raise ValueError(f"it gives {', '.join(made)}, and neither logits nor last_hidden_state")
