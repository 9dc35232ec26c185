"""Training of image models: Lightning tasks, data modules and callbacks, recipes, fine-tuning, segmentation."""

from tsfm_vision.training.callbacks import SoftMaskSchedule
from tsfm_vision.training.data import ImageDataModule, InOrder, Shuffled, TrainLoader, Transformed, divide, open_source
from tsfm_vision.training.finetuning import device_of, finetune
from tsfm_vision.training.recipes import Augment, ImageOptim, Mix, build_optimizer, lr_factor
from tsfm_vision.training.segmentation import SegmentationDataModule, SegmentationTask, Segmenter
from tsfm_vision.training.task import ImageModelFolder, ImageTask

__all__ = [
    "Augment",
    "ImageDataModule",
    "ImageModelFolder",
    "ImageOptim",
    "ImageTask",
    "InOrder",
    "Mix",
    "SegmentationDataModule",
    "SegmentationTask",
    "Segmenter",
    "Shuffled",
    "SoftMaskSchedule",
    "TrainLoader",
    "Transformed",
    "build_optimizer",
    "device_of",
    "divide",
    "finetune",
    "lr_factor",
    "open_source",
]
