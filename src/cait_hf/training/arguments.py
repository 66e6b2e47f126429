# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""The flags of `cait-hf train` and of both training scripts.

Before the flags stand files of flags, or names of the recipes in this package; what comes later wins.
"""

import json
import sys
from argparse import Action
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import transformers
import yaml
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import HfArgumentParser
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ..checkpoints import resolve_model
from ..command_line import one_line, quiet_transformers


# Flags of RecipeArguments that need a package which training as such does not need.
NEEDED_PACKAGES = {
    "auto_augment": "timm",
    "random_erasing": "timm",
    "repeated_augmentation": "timm",
    "mixup": "timm",
    "cutmix": "timm",
    "timm_optimizer": "timm",
    "ema_decay": "timm",
    "lora_rank": "peft",
}
RECIPES, SEARCHES = (Path(__file__).resolve().parents[1] / name for name in ("recipes", "searches"))
# What to install for a logger of --report_to, where it has not the logger's name.
LOGGER_PACKAGES = {"azure_ml": "azureml-core", "dagshub": "dagshub mlflow", "flyte": "flytekit"}


def option(help: str, default: Any = None) -> Any:
    """A field of a dataclass of arguments."""
    return field(default=default, metadata={"help": help})


@dataclass
class ModelArguments:
    model_name_or_path: str | None = option("Checkpoint, a folder or Hub id. Without it: training from scratch.")
    config_name: str | None = option("From scratch: folder or Hub id of the configuration. Without it: CaiT XXS24.")
    config_overrides: str | None = option("From scratch: fields, such as hidden_size=96,num_hidden_layers=6.")
    image_size: int | None = option("CaiT only: resolution to work at; the positions are resized to it.")
    drop_path_rate: float | None = option("Rate of stochastic depth, in [0, 1).")
    ignore_mismatched_sizes: bool = option("Start a new classifier if the number of classes differs.", False)
    trust_remote_code: bool = option("Run model code that comes with the checkpoint.", False)

    def __post_init__(self) -> None:
        # names of flags, set by recipes alone, that a model may lack; no field, hence no flag
        self.optional: list[str] = []


@dataclass
class DataArguments:
    dataset_name: str | None = option(
        "Hub id or folder for `load_dataset`, folder of `Dataset.save_to_disk`, or a format of `load_dataset` such as "
        "parquet, json, webdataset or imagefolder, whose files --train_files and --validation_files name."
    )
    dataset_config_name: str | None = option("Configuration of that dataset.")
    eval_split: str = option("Split of that dataset to evaluate on.", default="validation")
    train_files: str | None = option("With --dataset_name: pattern of the files to train on, such as 'data/*.tar'.")
    validation_files: str | None = option("The same, to evaluate on.")
    train_dir: str | None = option("Folder with one subfolder of images a class.")
    validation_dir: str | None = option("The same, to evaluate on.")
    predict_dir: str | None = option("--do_predict: folder of images to predict on, at any depth, without classes.")
    predict_files: str | None = option("The same, with --dataset_name: pattern of files.")
    predict_split: str = option("The same: split of that dataset, without --predict_dir and --predict_files.", "test")
    train_val_split: float = option(
        "Fraction of the training images of each class to hold out if nothing else is to evaluate on; never of a "
        "stream.",
        0.15,
    )
    max_train_samples: int | None = option(
        "Train on this many images, drawn once; with --streaming on the first of each file, at most this many."
    )
    max_eval_samples: int | None = option("Evaluate on this many, chosen in the same way.")
    image_column_name: str | None = option("Column of the images. Without it: found by its type.")
    label_column_name: str | None = option(
        "Column of the classes, also FIELD.KEY such as json.label. Without it: found by its type or usual name."
    )
    class_names: str | None = option(
        "File with the name of one class a line, in the order of their numbers: for data that hold numbers alone."
    )
    streaming: bool = option(
        "Read the data while training, never holding them whole; needs --max_steps. Workers and processes share the "
        "files: have at least one for each worker of each process.",
        False,
    )
    shuffle_buffer: int = option(
        "Streaming: among how many undecoded images each worker process draws the next one.", 1000
    )
    corrupt_images: Literal["error", "skip"] = option(
        "An image that cannot be decoded ends the run (error), or is left out and listed in corrupt_images.txt in the "
        "output folder (skip), for which every image is decoded once before training, by as many processes as "
        "--dataloader_num_workers. In a distributed run the others wait no longer than --ddp_timeout.",
        "error",
    )
    overwrite_output_dir: bool = option(
        "Train from scratch in a folder that is not empty; deletes its checkpoints.", False
    )


@dataclass
class RecipeArguments:
    # augmentation
    crop_area: float = option("Least fraction of the image's area that a random crop takes.", 0.08)
    flip_probability: float = option("Probability of mirroring an image.", 0.5)
    auto_augment: str | None = option("timm's name of a policy, such as rand-m9-mstd0.5-inc1.")
    random_erasing: float = option("Probability of noise in the place of a random rectangle.", 0.0)
    repeated_augmentation: int = option("Augmented views per image (N); an epoch then covers 1/N of the images.", 1)
    mixup: float = option("Alpha of mixup; 0 is off.", 0.0)
    cutmix: float = option("Alpha of cutmix; 0 is off.", 0.0)
    mixup_prob: float = option("Probability of mixing a batch.", 1.0)
    mixup_switch_prob: float = option("Probability of cutmix where mixup is on too.", 0.5)
    mixup_mode: str = option("What shares a draw: batch, pair or elem.", "batch")
    # optimization
    timm_optimizer: str | None = option("Optimizer of timm by its name there, such as muon, in place of --optim's.")
    base_learning_rate: float | None = option("Learning rate for 512 images a step; gives --learning_rate.")
    warmup_epochs: float | None = option("Warm-up, of the --num_train_epochs; gives --warmup_steps.")
    warmup_lr: float | None = option("Learning rate at the first step; with it, the official cosine schedule.")
    min_lr: float | None = option("Learning rate at the last step; with it, the official cosine schedule.")
    layer_decay: float = option("Fraction of the learning rate that each layer has of the next one's.", 1.0)
    trainable: str = option("What trains: all, head (linear probe), attention, or a number of last layers.", "all")
    ema_decay: float | None = option("Keep, evaluate and save an average of the weights too; officially 0.99996.")
    ema_warmup: bool = option("Start the average with a smaller decay.", False)
    # LoRA
    lora_rank: int | None = option("Train adapters of this rank and the classifier; merged at the end.")
    lora_alpha: float | None = option("Scale of the adapters times their rank. Without it: twice the rank.")
    lora_dropout: float = option("Dropout before the adapters.", 0.0)
    lora_target_modules: str = option("Linears with adapters, names with commas between.", "q_proj,v_proj")
    # distillation
    teacher_model_name_or_path: str | None = option("Classifier to learn from, a folder or Hub id.")
    distillation_type: str = option("What of the teacher: hard (its best class) or soft (its logits).", "hard")
    distillation_alpha: float = option("Weight of the teacher in the loss.", 0.5)
    distillation_tau: float = option("Temperature of soft distillation.", 1.0)

    @property
    def official_schedule(self) -> bool:
        """Whether the official cosine schedule sets the learning rates, whatever `--lr_scheduler_type` is."""
        return self.min_lr is not None or self.warmup_lr is not None


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """Transformers' arguments; on a GPU that has bfloat16 it is the default."""

    # `bool`, not `bool | None`: the parser takes "--bf16" without a value for that type alone
    bf16: bool = option("Mixed precision in bfloat16. Without it: on GPUs that have it, unless --fp16.", None)
    report_to: list[str] | None = option("Loggers, such as tensorboard and trackio, or all. Without it: none.")
    search: str | None = option(
        "Instead of one training, try flags by optuna: a file of ranges, or the name of one in the package. Writes "
        "search_results.csv and best.yaml, the best flags."
    )
    remove_unused_columns: bool = option("Leave it off: the images are no column that the model names.", False)
    if not hasattr(transformers.TrainingArguments, "activation_checkpointing"):  # the name since 5.23
        activation_checkpointing: bool = option("Compute activations twice, which saves memory.", False)

    def __post_init__(self) -> None:
        given = changed_fields(self)  # before values are derived from others
        # without an accelerator, or several processes would not find each other
        self.use_cpu: bool = self.use_cpu or not torch.accelerator.is_available()
        if self.bf16 is None:
            on_gpu = torch.cuda.is_available() and not self.use_cpu
            self.bf16 = on_gpu and not self.fp16 and torch.cuda.is_bf16_supported(including_emulation=False)
        self.report_to = self.report_to or ["none"]
        if not hasattr(transformers.TrainingArguments, "activation_checkpointing"):
            self.gradient_checkpointing: bool = self.gradient_checkpointing or self.activation_checkpointing
        super().__post_init__()
        # names; no field, hence no flag. The parser gives some defaults in another form, False for "no".
        self.changed = [name for name in changed_fields(self) if name in given]


def changed_fields(arguments: Any) -> list[str]:
    """Names of the fields of a dataclass that have neither their default nor an empty list, which sets nothing."""
    defaults = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(arguments)
        if field.init
    }
    return [name for name, default in defaults.items() if getattr(arguments, name) not in (default, [])]


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, RecipeArguments, TrainingArguments]:
    """The arguments of a command line, perhaps with recipes or files of flags before its flags.

    Raises:
        ValueError: with an error message, for what no flag or no training allows.
        OSError: if a file cannot be read, a model does not exist, or --push_to_hub could not push.
        ImportError: if a flag needs a package that is not installed.
    """
    parser = _parser()
    files = list(takewhile(lambda argument: not argument.startswith("-"), argv))
    flags = [flag for name in files for flag in _read_flags(find_file(name, RECIPES), parser)]
    parsed = parser.parse_args_into_dataclasses([*flags, *argv[len(files) :]], look_for_args_file=False)
    by_hand, _ = parser.parse_known_args(argv[len(files) :])
    optional = ("drop_path_rate", "layer_decay")
    parsed[0].optional = [name for name in optional if getattr(by_hand, name) == parser.get_default(name)]
    _check(*parsed)
    model_args, _, recipe, args = parsed
    for arguments, flag in (
        (model_args, "model_name_or_path"),
        (model_args, "config_name"),
        (recipe, "teacher_model_name_or_path"),
    ):
        if getattr(arguments, flag) is not None:
            setattr(arguments, flag, _source_of(flag, getattr(arguments, flag)))
    if args.push_to_hub and args.should_save:
        _check_push(args)
    return parsed


def program() -> tuple[str, ...]:
    """What was started: `cait-hf train`, or a script by its path."""
    is_command = Path(sys.argv[0]).stem in ("cait-hf", "cait_hf_cli")
    return ("cait-hf", "train") if is_command else (sys.argv[0],)


def names_in(folder: Path) -> list[str]:
    """Of the files in a folder of this package: of `RECIPES` `"finetune"`, `"variants/s24"` and others."""
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def find_file(name: str, folder: Path) -> str:
    """A path that names itself, or that of a file in a folder of this package by its name.

    Raises:
        ValueError: if it is neither.
    """
    if name.endswith((".json", ".yaml", ".yml")):
        return name
    known = names_in(folder)
    if name not in known:
        raise ValueError(
            f"{name} is neither a file (.yaml, .yml, .json) nor one of {folder.name}: {', '.join(known)}."
        )
    return str(folder / f"{name}.yaml")


def flag_names() -> set[str]:
    """All flags, without dashes."""
    return {action.dest for action in _parser()._actions}


def _parser() -> "_Parser":
    return _Parser(
        (ModelArguments, DataArguments, RecipeArguments, TrainingArguments),
        usage=f"{' '.join(program())} [RECIPE ...] [--FLAG VALUE ...]",
        description=f"RECIPE is a file of flags (.yaml, .yml, .json) or one of {', '.join(names_in(RECIPES))}.",
    )


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}.")


def read_yaml(path: str) -> Any:
    """Content of a file in YAML, or in JSON by its name.

    Raises:
        ValueError: if it is neither.
        OSError: if it cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a file of flags: {one_line(error)}") from error


def _read_flags(path: str, parser: HfArgumentParser) -> list[str]:
    """A file of flags as a command line."""
    flags = read_yaml(path)
    if not isinstance(flags, dict):
        raise ValueError(f"{path} must hold names of flags with their values.")
    known = {action.dest: action for action in parser._actions}
    unknown = [str(name) for name in flags if name not in known]
    if unknown:
        raise ValueError(f"{path} sets {', '.join(unknown)}, but there are no such flags.")
    argv = []
    for name, value in flags.items():
        if isinstance(value, list):
            argv += [f"--{name}", *map(str, value)] if value else []
        elif value is not None:
            argv.append(f"--{name}={_as_text(value, known[name])}")  # joined: "-1e-6" by itself looks like a flag
    return argv


def _as_text(value: Any, action: Action) -> str:
    if value is False and action.choices and "no" in action.choices:
        return "no"  # as YAML reads `eval_strategy: no`
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _check(
    model_args: ModelArguments, data_args: DataArguments, recipe: RecipeArguments, args: TrainingArguments
) -> None:
    pretrained = model_args.model_name_or_path is not None
    if not (args.do_train or args.do_eval or args.do_predict):
        raise ValueError("there is nothing to do: pass --do_train, --do_eval, --do_predict, or several of them.")
    if "output_dir" not in args.changed:
        raise ValueError("--output_dir is not set: pass the folder to write to.")
    if not (args.do_train or pretrained):
        raise ValueError("--do_eval or --do_predict without --do_train needs --model_name_or_path, the model.")
    if pretrained and (model_args.config_name or model_args.config_overrides):
        raise ValueError("--config_name and --config_overrides train from scratch: drop them or --model_name_or_path.")
    if data_args.dataset_name and (data_args.train_dir or data_args.validation_dir):
        raise ValueError("--dataset_name excludes --train_dir and --validation_dir: pass one or the other.")
    if not 0 < data_args.train_val_split < 1:
        raise ValueError(f"--train_val_split is {data_args.train_val_split}, but it must be between 0 and 1.")
    if data_args.streaming and args.do_train and args.max_steps < 1:
        raise ValueError("--streaming needs --max_steps: the length of an epoch of a stream is unknown.")
    if recipe.repeated_augmentation < 1:
        raise ValueError(f"--repeated_augmentation is {recipe.repeated_augmentation}, but it must be at least 1.")
    if recipe.lora_rank is not None and recipe.lora_rank < 1:
        raise ValueError(f"--lora_rank is {recipe.lora_rank}, but it must be at least 1.")
    if recipe.lora_rank is not None and (recipe.trainable != "all" or recipe.layer_decay != 1):
        raise ValueError("--lora_rank says what trains: drop --trainable and --layer_decay.")
    if recipe.warmup_epochs is not None and args.warmup_steps:
        raise ValueError("--warmup_epochs and --warmup_steps say the same: pass one of them.")
    if recipe.base_learning_rate is not None and args.learning_rate != TrainingArguments.learning_rate:
        raise ValueError("--base_learning_rate gives --learning_rate: pass one of them.")
    for name in ("optim", "adam_beta1", "adam_beta2", "adam_epsilon"):
        if recipe.timm_optimizer is not None and name in args.changed:
            raise ValueError(
                f"--timm_optimizer is {recipe.timm_optimizer}, but --{name} is about others: drop one of the two. "
                "--optim_args has the arguments of timm's."
            )
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}, but it must be at least 1.")
    if args.search and not (args.do_train and args.do_eval and args.world_size == 1):
        raise ValueError("--search needs --do_train, --do_eval and one process.")
    if args.search and find_spec("optuna") is None:
        raise ImportError("--search needs the package optuna: pip install optuna.")
    if data_args.overwrite_output_dir and args.resume_from_checkpoint is not None:
        raise ValueError("--overwrite_output_dir trains from scratch: drop it or --resume_from_checkpoint.")
    if args.fp16 and args.use_cpu:
        raise ValueError("--fp16 needs a GPU: drop it.")
    for name in ("bf16_full_eval", "fp16_full_eval"):
        if args.do_train and getattr(args, name):
            raise ValueError(f"--{name} rounds the weights before they are saved: drop it, or --do_train.")
    if args.save_strategy == "best" and (args.metric_for_best_model is None or args.eval_strategy == "no"):
        raise ValueError("--save_strategy best needs --metric_for_best_model, such as eval_top1, and --eval_strategy.")
    available = {*get_available_reporting_integrations(), *(["flyte"] if find_spec("flytekit") else [])}
    for logger in args.report_to or ():
        if logger not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ValueError(f"--report_to is {logger}, but it must be none, all or some of {known}.")
        if logger not in available:
            package = LOGGER_PACKAGES.get(logger, logger)
            raise ImportError(f"--report_to {logger} needs the package {package}: pip install {package}.")
    for flag, package in NEEDED_PACKAGES.items():
        if flag in changed_fields(recipe) and find_spec(package) is None:
            raise ImportError(f"--{flag} needs the package {package}, which is not installed: pip install {package}.")
    if recipe.base_learning_rate is not None:
        images = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        # Part of parsing, as what `TrainingArguments` derives itself; from here on nothing edits `args`, which are the
        # record of the run.
        args.learning_rate = recipe.base_learning_rate * images / 512


def _source_of(flag: str, name: str) -> str:
    """What `from_pretrained` loads for the name of a model; raises OSError if that can be neither folder nor id."""
    source = resolve_model(name)
    if Path(source).exists():
        is_file = flag == "config_name" and Path(source).is_file()
        if not is_file and not Path(source, "config.json").is_file():
            raise FileNotFoundError(f"--{flag} is {name}, but it must be a folder with a config.json, or an id.")
        return source
    try:
        validate_repo_id(source)
    except HFValidationError:
        raise FileNotFoundError(f"--{flag} is {name}, but there is no such folder.") from None
    return source


def _check_push(args: TrainingArguments) -> None:
    """Raise, before training, what would keep the result from being pushed after it."""
    repo_id = args.hub_model_id or Path(args.output_dir).resolve().name
    try:
        validate_repo_id(repo_id)
        user = HfApi(token=args.hub_token).whoami()
    except HFValidationError as error:
        raise ValueError(f"--push_to_hub: {repo_id} is not a valid repository name: {one_line(error)}") from None
    except (OSError, HTTPError) as error:
        needed = "the Hub within reach and a login: run `hf auth login`, or set HF_TOKEN or --hub_token"
        raise OSError(f"--push_to_hub needs {needed} ({one_line(error)}).") from error
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError("--push_to_hub needs a token that may write, but the one in use may only read.")
    owners = [user["name"], *(organization["name"] for organization in user.get("orgs", []))]
    owner, slash, _ = repo_id.partition("/")
    if slash and owner.lower() not in map(str.lower, owners):
        raise ValueError(f"--hub_model_id is {repo_id}, but the token may push to {', '.join(owners)} only.")


@contextmanager
def loading(flag: str, name: str) -> Iterator[None]:
    """Load what a flag names, without Transformers' reports; errors name the flag, in one line.

    Raises:
        ValueError: if it cannot be loaded.
        OSError: if it is not there, or out of reach.
    """
    try:
        with quiet_transformers():
            yield
    except (OSError, HTTPError) as error:
        raise OSError(f"--{flag} is {name}: {one_line(error)}") from error
    except (ValueError, RuntimeError, SafetensorError) as error:  # RuntimeError: tensors of other shapes
        raise ValueError(f"--{flag} is {name}: {one_line(error)}") from error
