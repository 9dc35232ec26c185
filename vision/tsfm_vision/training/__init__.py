"""Training of image models: tasks, data modules and callbacks of Lightning, recipes, fine-tuning, dense prediction."""

from tsfm_vision.training.callbacks import SoftMaskSchedule
from tsfm_vision.training.data import ImageDataModule, divide, open_source
from tsfm_vision.training.dense import FeaturePyramid
from tsfm_vision.training.detection import DetectionTask
from tsfm_vision.training.finetuning import device_of, finetune
from tsfm_vision.training.loaders import InOrder, Shuffled, TrainLoader
from tsfm_vision.training.recipes import Augment, ImageOptim, Mix, build_optimizer, lr_factor
from tsfm_vision.training.sales import PlantedSales
from tsfm_vision.training.scenes import DenseDataModule
from tsfm_vision.training.segmentation import SegmentationTask, Segmenter
from tsfm_vision.training.task import ImageModelFolder, ImageTask

__all__ = [
    "Augment",
    "DenseDataModule",
    "DetectionTask",
    "FeaturePyramid",
    "ImageDataModule",
    "ImageModelFolder",
    "ImageOptim",
    "ImageTask",
    "InOrder",
    "Mix",
    "PlantedSales",
    "SegmentationTask",
    "Segmenter",
    "Shuffled",
    "SoftMaskSchedule",
    "TrainLoader",
    "build_optimizer",
    "device_of",
    "divide",
    "finetune",
    "lr_factor",
    "open_source",
]
