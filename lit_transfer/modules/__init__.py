"""LightningModules: one base, one file for each task."""

from lit_transfer.modules._saved import read_saved
from lit_transfer.modules.image_classifier import ImageClassifier, Prediction
from lit_transfer.modules.image_regressor import Estimate, ImageRegressor
from lit_transfer.modules.multi_label_classifier import LabelPrediction, MultiLabelClassifier
from lit_transfer.modules.transfer_module import TransferModule

__all__ = [
    "Estimate",
    "ImageClassifier",
    "ImageRegressor",
    "LabelPrediction",
    "MultiLabelClassifier",
    "Prediction",
    "TransferModule",
    "read_saved",
]
